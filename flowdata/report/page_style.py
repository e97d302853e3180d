"""How a report looks: on a phone, on a desk, on paper."""

STYLE = """
:root { color-scheme: light; --ink: #1c2430; --soft: #556070; --line: #dfe4ea; --card: #f6f8fa;
        --blue: #1f6fb4; }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: #fff;
       max-width: 1060px; margin: 1.5rem auto; padding: 0 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .2rem; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .5rem; padding-top: .6rem;
     border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.6rem 0 .5rem; }
p { color: var(--soft); margin: .2rem 0 .8rem; max-width: 75ch; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; margin: 1rem 0 0; }
a { color: var(--blue); padding: .15rem 0; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(145px, 1fr)); gap: .6rem;
         margin: .6rem 0; }
.cards div { background: var(--card); border-radius: 8px; padding: .6rem .8rem; }
.cards b { display: block; font-size: 1.25rem; font-weight: 600; }
.cards span { color: var(--soft); font-size: .85rem; display: block; line-height: 1.3; }
.note { background: #fff4d6; border-radius: 8px; padding: .7rem .9rem; margin: .8rem 0; }
.figures { display: grid; gap: 1rem;
           grid-template-columns: repeat(auto-fit, minmax(min(100%, 430px), 1fr)); }
figure { margin: 0; min-width: 0; max-width: 640px; } figure svg { width: 100%; height: auto; }
.scroll { overflow-x: auto; }
.scroll:focus { outline: 2px solid var(--blue); }
table { border-collapse: collapse; width: 100%; overflow-wrap: normal; }
caption { text-align: left; color: var(--soft); font-size: .85rem; padding-bottom: .2rem; }
th { text-align: left; font-weight: 600; font-size: .85rem; }
thead th { color: var(--soft); vertical-align: bottom; }
th, td { border-bottom: 1px solid var(--line); padding: .35rem .9rem .35rem 0;
         vertical-align: top; }
th:last-child, td:last-child { padding-right: .2rem; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
td.number { white-space: nowrap; }
tbody th, td.text { overflow-wrap: anywhere; min-width: 7rem; }
.sample { border: 1px solid var(--line); border-radius: 8px; padding: .6rem .8rem; margin: .6rem 0;
          overflow: hidden; }
.sample header { display: flex; flex-wrap: wrap; gap: .1rem 1rem; font-size: .87rem;
                 color: var(--soft); font-variant-numeric: tabular-nums; }
.sample header b { color: var(--ink); }
.meter { height: 4px; border-radius: 2px; background: var(--line); margin: .35rem 0 .5rem; }
.meter i { display: block; height: 4px; border-radius: 2px; background: var(--blue); }
dl { margin: 0; } dt { font-size: .8rem; color: var(--soft); margin-top: .35rem; }
dd { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; }
dd img { max-width: 100%; max-height: 16rem; display: block; image-rendering: auto; }
.also { font-size: .8rem; margin: .5rem 0 0; white-space: pre-wrap; }
summary { color: var(--blue); cursor: pointer; padding: .2rem 0; font-size: .87rem; }
@media print { .sample { break-inside: avoid; } nav { display: none; } }
"""
