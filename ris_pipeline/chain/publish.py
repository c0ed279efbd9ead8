"""Publishing what several processes have made, also where a machine does not see the disk of the first one."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext

from ris_pipeline.artifacts.files import make_folder
from ris_pipeline.artifacts.find import load_artifact
from ris_pipeline.artifacts.identity import Request
from ris_pipeline.artifacts.layout import NO_ARTIFACTS, RESUME, TRAIN_SPLIT
from ris_pipeline.artifacts.locks import read_holder
from ris_pipeline.artifacts.publish import Work, publish
from ris_pipeline.artifacts.verify import check_whole
from ris_pipeline.chain.context import Context
from ris_pipeline.errors import MadeMeanwhileError, RisError
from ris_pipeline.process.ranks import agree, find_ranks, wait


@contextmanager
def publish_together(context: Context, request: Request, *, apart: bool = False) -> Iterator[Work]:
    """Yield the folder to write the artifact of `request` in; after the block it is found under its own name.

    Of several processes the first one publishes what all have written there, and its `Work` is the one that counts.
    `apart`: the first one alone writes what counts, so that a machine that does not see its folder gets another one
    for the block. Otherwise as `artifacts.publish.publish`. Raises RisError where not all of them see the same
    folder, or lack what they need apart; MadeMeanwhileError, after a remark, in all of them.
    """
    checkpoint = request.partial / RESUME
    with ExitStack() as published:

        def enter() -> tuple[Work, str, bool]:
            try:
                work = published.enter_context(publish(request, force=context.force))
            except MadeMeanwhileError as made:
                context.say(str(made))
                raise
            return work, read_holder(request.lock), checkpoint.exists()

        work, holder, resumes = agree(enter)
        is_apart = read_holder(request.lock) != holder
        if is_apart and not apart:
            raise RisError(
                f"{request.partial}: not there on {platform.node()}, and {request.stage} is written by all "
                "processes: on several machines --runs has to be one shared folder"
            )
        if is_apart and checkpoint.exists() and not resumes:
            raise RisError(
                f"{checkpoint}: a run broke off on {platform.node()}, and the first process is on another machine "
                "now; start torchrun with --node-rank 0 here, or delete this file"
            )
        with _work_apart(context, request) if is_apart else nullcontext(work) as used:
            yield used
            wait()  # until all has been written
    wait()  # until it is found


@contextmanager
def _work_apart(context: Context, request: Request) -> Iterator[Work]:
    """Yield a folder of this machine alone. Raises RisError where it lacks what the request reads, or has others'.

    The first process of the machine looks.
    """
    if find_ranks().local_rank == 0:
        for name, its_digest in request.inputs.items():
            folder = request.runs / request.dataset / name.partition("/")[0] / its_digest
            if name not in NO_ARTIFACTS:
                if load_artifact(folder) is None:
                    raise RisError(
                        f"{folder}: not there on {platform.node()}, which does not share the disk of the first "
                        "process; copy it there (rsync -a)"
                    )
                check_whole(folder)
        own = {"data": context.data_digest, "images": context.digest_images(TRAIN_SPLIT)} if request.inputs else {}
        if any(request.inputs[name] != its_digest for name, its_digest in own.items()):
            raise RisError(
                f"{context.card.name}: {platform.node()} has other annotations or images below {context.data_root} "
                "than the machine of the first process; copy them there (rsync -a)"
            )
    folder = request.path.with_name(f"{request.path.name}.apart")
    make_folder(folder)
    try:
        yield Work(folder, False)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
