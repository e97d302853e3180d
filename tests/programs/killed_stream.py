"""Streams on ranks that are killed again and again, at any moment, and go on from what was saved.

usage: killed_stream.py CONFIG.json, which holds {urls, table, stream, folder, seed, epochs, lives,
layouts, loader, out, packed}. In each life the ranks of one of the layouts (ranks, workers) train
in step, until one is killed by SIGKILL, at a moment of a step or at any time, and the others with
it. What was saved last counts, with the steps before it; the next life goes on from it. The outcome
has for each epoch and rank the names that were trained on, and how many draws uneven ranks may
repeat.
With ``packed``, of token shards, names are those of the rows of a pack.
"""

import json
import multiprocessing
import os
import random
import signal
import sys
import time
from pathlib import Path

import webdataset as wds
from shard_files import name_of
from token_shards import MAX_LENGTH, as_tokens, rows_in
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from flowdata import FlowShards

BATCH = 4
MOMENTS = ("before_saving", "while_saving", "after_saving", "at_any_time", "never")


def kept(name):
    """Nine of ten names."""
    if name.endswith("7"):
        raise ValueError(name)
    return name


def names_of(stream, config):
    """What is trained on: names of samples, or of the rows of packs."""
    if not config.get("packed"):
        return stream.map(name_of)
    return stream.map(as_tokens).packed(MAX_LENGTH).map(rows_in).map(str)


def train(config, rank, ranks, workers, place, barrier, death):
    """The life of a rank."""
    stream = FlowShards(
        config["urls"], config["table"], **config["stream"],
        batch_size=BATCH, num_replicas=ranks, rank=rank,
    )  # fmt: skip
    stream = names_of(stream, config)
    stateful = config["loader"] == "stateful"
    if stateful:
        stream = stream.map(kept, handler=wds.ignore_and_continue)
    kind = StatefulDataLoader if stateful else DataLoader
    loader = kind(stream, BATCH, num_workers=workers)
    saved = json.loads(place.read_text()) if place.exists() else {"epoch": 0, "state": None}
    if saved["state"] is not None:
        (loader if stateful else stream).load_state_dict(saved["state"])
    position, steps = saved.get("position", 0), 0
    log = place.with_suffix(".log").open("w")

    def die_if(moment):
        if [steps, moment] == death:
            os.kill(os.getpid(), signal.SIGKILL)

    for epoch in range(saved["epoch"], config["epochs"]):
        if not stateful:
            stream.set_epoch(epoch)
        for batch in loader:
            steps += 1
            print(json.dumps([epoch, batch]), file=log, flush=True)
            # Every step waits for all ranks.
            barrier.wait(60)
            die_if("before_saving")
            position += BATCH * ranks
            state = loader.state_dict() if stateful else stream.state_dict(position=position)
            # At the end of an epoch the state of a stream is that of the next one.
            at = {"epoch": epoch} if stateful else {"epoch": state["epoch"]}
            at["position"] = position if at["epoch"] == epoch else 0
            save(place, at | {"state": state, "steps": steps}, lambda: die_if("while_saving"))
            barrier.wait(60)
            die_if("after_saving")
        position = 0


def save(place, content, before):
    unfinished = place.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(content))
    before()
    unfinished.replace(place)


def live(config, life, layout, place_of, random_):
    """Let the ranks of a layout train until they have done all, or are killed: whether they did."""
    ranks = layout[0]
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(ranks)
    # The first is killed in a step: at any time it might have come to its end.
    moments = MOMENTS[:3] if life == 0 else MOMENTS[:4]
    moment = random_.choice(moments) if life < config["lives"] else "never"
    victim, step = random_.randrange(ranks), random_.randrange(1, 5)
    deaths = [[step, moment] if rank == victim else None for rank in range(ranks)]
    processes = [
        context.Process(target=train, args=(config, rank, *layout, place_of(rank), barrier, death))
        for rank, death in enumerate(deaths)
    ]
    for process in processes:
        process.start()
    if moment == "at_any_time":
        time.sleep(random_.random())
        os.kill(processes[victim].pid, signal.SIGKILL)
    processes[victim].join(100)
    for process in processes:
        # As torchrun does, once one of them is gone.
        if processes[victim].exitcode != 0:
            process.kill()
        process.join(60)
    return all(process.exitcode == 0 for process in processes)


def main():
    config = json.loads(Path(sys.argv[1]).read_text())
    random_ = random.Random(config["seed"])
    stateful = config["loader"] == "stateful"
    trained = {}
    repeats, life, done = 0, 0, False
    before = None
    while not done:
        layout = random_.choice(config["layouts"])
        folder = Path(config["folder"]) / str(life)
        folder.mkdir()

        def place_of(rank, folder=folder):
            return folder / f"{rank}.json"

        for rank in range(layout[0]):
            # Ranks save in step: rank 0's last state is on all of them, or one step ahead.
            if before is not None:
                source = before[rank if stateful else 0]
                place_of(rank).write_text(json.dumps(source | {"steps": 0}))
        done = live(config, life, layout, place_of, random_)
        places = [place_of(rank) for rank in range(layout[0])]
        found = [json.loads(place.read_text()) for place in places if place.exists()]
        # Where each rank saves for itself, a checkpoint is complete when all have.
        if not stateful:
            complete = places[0].exists()
        else:
            complete = len(found) == len(places) and len({part["steps"] for part in found}) == 1
        if complete:
            before = found
            repeats += layout[0] - 1
            for rank, place in enumerate(places):
                log = place.with_suffix(".log")
                lines = log.read_text().splitlines() if log.exists() else []
                for line in lines[: found[0]["steps"]]:
                    epoch, batch = json.loads(line)
                    trained.setdefault(str(epoch), {}).setdefault(str(rank), []).extend(batch)
        elif done:
            raise SystemExit("done, but not saved")
        life += 1
    Path(config["out"]).write_text(
        json.dumps({"trained": trained, "repeats": repeats, "lives": life})
    )


if __name__ == "__main__":
    main()
