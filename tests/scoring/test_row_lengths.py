"""lengths: what CausalLM and TRL say of the same rows, without a model."""

import copy
import io
import json
import tarfile
from dataclasses import replace

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from counted_rows import EXPECTED, Rows, counted
from language_models import llama, samples
from tokenizer_families import CHATML, family
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

import flowdata
from flowdata import (
    CausalLM,
    FlowDataWarning,
    InvalidLossError,
    LossTable,
    MismatchError,
    ShardRows,
    TableFileError,
    score,
)

CHAT = [
    {"role": role, "content": "def f(x):\n"} for role in ("user", "assistant", "user", "assistant")
]
PAIRS = [{"q": f"The {'quick ' * n}fox", "a": " jumps." * (n % 5 + 1)} for n in range(30)]
LAYOUTS = {
    "text": (PAIRS, {"text": "a"}),
    "prompt, response": (PAIRS, {"prompt": "q", "response": "a"}),
    "messages": ([{"m": CHAT[: 2 + n % 3]} for n in range(20)], {"messages": "m"}),
    "turns": (
        [{"p": CHAT[:1], "c": CHAT[1 : 2 + n % 3]} for n in range(9)],
        {"prompt": "p", "response": "c"},
    ),
    "chosen": (
        [{"chosen": "a b c " + "x " * n, "rejected": "a b d"} for n in range(1, 9)],
        {"response": "chosen"},
    ),
    "input_ids": (samples(40), {}),
}


def chat_tokenizer():
    tokenizer = copy.deepcopy(family("byte-level"))
    tokenizer.chat_template = CHATML
    return tokenizer


@pytest.mark.parametrize("layout", LAYOUTS)
def test_lengths_are_those_that_a_scored_table_has(layout):
    rows, columns = LAYOUTS[layout]
    tokenizer = chat_tokenizer() if columns else None
    model = llama()
    if tokenizer is not None:
        model.resize_token_embeddings(len(tokenizer))
    rows = datasets.Dataset.from_list(rows)
    loss = CausalLM(tokenizer=tokenizer, **columns)
    table, whole = score(model, rows, loss, progress=False), counted(rows, loss)
    assert whole.dtype == table.lengths.dtype == np.int32
    assert whole.tolist() == table.lengths.tolist()
    # They are those of what the model is given.
    assert whole.tolist() == [sample.ids.size for sample in loss.reader()(list(rows))]
    most = (int(whole.min()) + int(whole.max())) // 2
    assert whole.min() < most < whole.max()
    cut = replace(loss, max_length=most)
    with pytest.warns(FlowDataWarning, match="were longer than"):
        table = score(model, rows, cut, on_invalid="drop", progress=False)
    assert table.lengths.tolist() == np.minimum(whole, most).tolist()
    assert counted(rows, cut).tolist() == table.lengths.tolist()


@pytest.mark.slow
def test_lengths_of_real_text_are_those_of_the_real_model(smollm2):
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    names = ("strip", "join", "zfill")
    rows = [{"prompt": f"str.{name}: ", "response": getattr(str, name).__doc__} for name in names]
    texts = [row["prompt"] + row["response"] + tokenizer.eos_token for row in rows]
    whole = [len(ids) for ids in tokenizer(texts)["input_ids"]]
    loss = CausalLM(tokenizer=tokenizer, prompt="prompt", response="response")
    assert score(model, rows, loss, progress=False).lengths.tolist() == whole
    assert counted(rows, loss).tolist() == whole
    cut = replace(loss, max_length=40)
    assert counted(rows, cut).tolist() == np.minimum(whole, 40).tolist()
    assert max(whole) > 40
    chats = [{"m": [{"role": "user", "content": text}, *CHAT[1:2]]} for text in texts[:2]]
    loss = CausalLM(tokenizer=tokenizer, messages="m")
    rendered = [tokenizer.apply_chat_template(chat["m"], tokenize=False) for chat in chats]
    expected = [len(ids) for ids in tokenizer(rendered)["input_ids"]]
    assert score(model, chats, loss, progress=False).lengths.tolist() == expected
    assert counted(chats, loss).tolist() == expected


@pytest.mark.parametrize("layout", ["messages", "text"])
def test_lengths_are_those_of_the_rows_that_trl_trains_on(tmp_path, layout):
    tokenizer = chat_tokenizer()
    tokenizer.pad_token = "<unk>"
    rows, columns = LAYOUTS[layout]
    (column,) = columns.values()
    rows = datasets.Dataset.from_list([{layout: row[column]} for row in rows])
    loss = CausalLM(tokenizer=tokenizer, **{layout: layout})
    most = int(counted(rows, loss).max()) - 1
    for limit in (None, most):
        arguments = SFTConfig(
            str(tmp_path),
            use_cpu=True,
            bf16=False,
            max_length=limit,
            report_to=[],
            disable_tqdm=True,
        )
        trainer = SFTTrainer(llama(), arguments, train_dataset=rows, processing_class=tokenizer)
        fed = [trainer.data_collator([row])["input_ids"].numel() for row in trainer.train_dataset]
        found = counted(rows, replace(loss, max_length=limit)).tolist()
        assert found == fed
        assert len(set(found)) > 1
    assert max(found) == most


def test_padding_that_the_attention_mask_shows_has_no_length():
    rows = [{"input_ids": [0, 0, 5, 6], "attention_mask": [0, 0, 1, 1]}, {"input_ids": [5]}]
    assert counted(rows).tolist() == [2, 1]


def test_rows_with_input_ids_need_no_labels_and_nothing_that_only_a_model_takes():
    ids = [5, 6, 7]
    rows = [
        {"input_ids": ids},
        {"input_ids": torch.tensor(ids), "pixel_values": np.zeros((3, 4, 4))},
        {"input_ids": ids, "position_ids": [0, 1, 0]},
        {"input_ids": ids, "completion_mask": [0, 1, 1], "weight": 0.5},
        {"input_ids": ids, "labels": [-100] * 3, "weights": None},
        {"input_ids": None, "labels": None},
        {"input_ids": []},
    ]
    assert counted(rows).tolist() == [3, 3, 3, 3, 3, 0, 0]


def test_columns_may_be_called_as_what_is_no_token():
    rows = [{"image_text": "The fox", "weight": "jumps."}]
    tokenizer = family("byte-level")
    loss = CausalLM(tokenizer=tokenizer, prompt="image_text", response="weight")
    plain = CausalLM(tokenizer=tokenizer, prompt="q", response="a")
    assert (
        counted(rows, loss).tolist() == counted([{"q": "The fox", "a": "jumps."}], plain).tolist()
    )


@pytest.mark.parametrize(
    ("rows", "options", "error", "message"),
    [
        ([{"input_ids": [1]}, {"text": "x"}], {}, ValueError, r"row 1: there is no column"),
        ([{"input_ids": [1]}, 3], {}, TypeError, "row 1: .*rows that are dicts"),
        ([{"input_ids": [0.5]}], {}, TypeError, "row 0: input_ids must be whole numbers"),
        ([{"input_ids": [[1], [2]]}], {}, ValueError, r"row 0: input_ids .* shape \(length,\)"),
        ([{"input_ids": [1], "seq_lengths": [1]}], {}, ValueError, "row 0: .*pack of several"),
        ([{"t": "x"}, {"t": 3}], {"text": "t"}, TypeError, "row 1: column 't' holds 3"),
        ([{"t": "x"}, {"t": CHAT}], {"response": "t"}, ValueError, "row 1 holds turns, row 0 text"),
    ],
)
def test_a_row_that_cannot_be_read_is_named(rows, options, error, message):
    tokenizer = chat_tokenizer()
    with pytest.raises(error, match=message):
        counted(rows, CausalLM(tokenizer=tokenizer, **options))


def test_what_is_no_data_set_or_no_causal_lm_is_refused():
    with pytest.raises(ValueError, match="the data set is empty"):
        counted([])
    with pytest.raises(TypeError, match=r"a CausalLM, Seq2Seq or TokenLabels is needed.*got str"):
        counted(Rows(), "causal_lm")
    with pytest.raises(TypeError, match="pass the data set, not a DataLoader"):
        counted(torch.utils.data.DataLoader([1]))


def test_workers_find_the_same():
    assert counted(Rows(), num_workers=2).tolist() == EXPECTED


def test_a_table_of_losses_is_not_taken_for_a_file_of_lengths(tmp_path):
    output = tmp_path / "losses.parquet"
    LossTable.from_losses([1.0, 3.0, 2.0]).save(output)
    before = output.read_bytes()
    with pytest.raises(MismatchError, match=r"is a table of losses.*with_lengths"):
        counted(Rows(3), output=output)
    assert output.read_bytes() == before


def test_a_file_of_lengths_is_not_taken_for_losses(tmp_path):
    output = tmp_path / "lengths.parquet"
    counted(Rows(), output=output)
    table = LossTable.load(output, dataset=Rows())
    assert table.lengths.tolist() == EXPECTED
    assert not table.has_losses
    for on_invalid in ("raise", "drop"):
        with pytest.raises(InvalidLossError, match="has the lengths of rows and no losses"):
            table.weights(on_invalid=on_invalid)
    with pytest.raises(InvalidLossError, match="has the lengths of rows and no losses"):
        flowdata.FlowSampler(table)
    with pytest.raises(ValueError, match="has lengths and no losses"):
        table.with_lengths(EXPECTED)
    with pytest.raises(MismatchError, match="loss"):
        score(llama(), samples(100), CausalLM(), output=output, progress=False)


def test_a_file_that_lost_its_lengths_is_named(tmp_path):
    output = tmp_path / "lengths.parquet"
    counted(Rows(), output=output)
    pq.write_table(pq.read_table(output).drop_columns(["length"]), output)
    with pytest.raises(TableFileError, match=r"lengths\.parquet should have lengths, and has none"):
        counted(Rows(), output=output)


def test_lengths_of_rows_of_shards_are_those_of_their_table(tmp_path):
    for shard, rows in enumerate((12, 30)):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as tar:
            for row in range(rows):
                content = json.dumps(samples(1, seed=shard * 100 + row)[0]).encode()
                member = tarfile.TarInfo(f"k{row:03}.json")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    urls = str(tmp_path / "{0..1}.tar")
    rows = ShardRows(urls, decode=lambda raw: json.loads(raw["json"]), progress=False)
    table = score(llama(), rows, CausalLM(), progress=False)
    output = tmp_path / "lengths.parquet"
    assert counted(rows, output=output).tolist() == table.lengths.tolist()
    assert LossTable.load(output).index.key(13) == "k001"


def test_other_losses_have_no_lengths():
    model = torch.nn.Linear(3, 4)
    rows = [(torch.zeros(3), row % 4) for row in range(8)]
    assert score(model, rows, progress=False).lengths is None
