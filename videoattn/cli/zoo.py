"""List published checkpoints, with the protocols of their accuracies, and fetch their weights.

Examples:
    videoattn zoo                                           # all rows, one a line
    videoattn zoo timesformer_base_k400                     # one row: its protocol, source and settings
    videoattn zoo mvit_v2_s_16x4_k400 --fetch               # fetch its weights into the cache, and say where they are

Sizes are millions of parameters and GMACs of one view. `videoattn test --zoo NAME` evaluates a row, and
TRAIN.CHECKPOINT_FILE_PATH zoo:NAME starts a training from its weights.
"""

from collections.abc import Iterator, Sequence

from videoattn.cli.programs import make_parser
from videoattn.zoo.protocol import ZooRow, locate_weights
from videoattn.zoo.rows import ZOO, find_row


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser("zoo", __doc__)
    parser.add_argument("name", nargs="?", metavar="NAME", help="one row; default: list all")
    parser.add_argument("--fetch", action="store_true", help="fetch the row's weights unless they are there already")
    args = parser.parse_args(argv)
    if args.name is None and args.fetch:
        raise ValueError("--fetch expects the NAME of a row")
    print("\n".join(_describe(find_row(args.name)) if args.name else _list_rows()))
    if args.fetch:
        print(f"weights     {locate_weights(find_row(args.name))}")


def _list_rows() -> Iterator[str]:
    width = max(map(len, ZOO))
    yield f"{'name':{width}}  {'data':11}  {'top-1':>5}  {'top-5':>5}  {'params':>7}  {'GMACs':>8}"
    for row in ZOO.values():
        top5 = "" if row.top5 is None else f"{row.top5:.1f}"
        yield (
            f"{row.name:{width}}  {row.dataset:11}  {row.top1:5.1f}  {top5:>5}  {row.parameters:7.2f}  {row.gmacs:8.3f}"
        )


def _describe(row: ZooRow) -> Iterator[str]:
    yield f"{row.name}: {row.title}, trained on {row.dataset}"
    yield f"top-1       {row.top1:.2f} %" + ("" if row.top5 is None else f", top-5 {row.top5:.2f} %")
    yield f"cost        {row.parameters:.2f} M parameters, {row.gmacs:.3f} GMACs of one view"
    yield f"source      {row.source}"
    for label, text in (("trained by", row.trained_by), ("note", row.note)):
        if text:
            yield f"{label:11} {text}"
    yield f"file        {row.file}" + ("" if row.is_ours else f", from {' or '.join(row.urls)}")
    yield "settings"
    yield from (f"  {key} {value}" for key, value in row.all_settings().items())
