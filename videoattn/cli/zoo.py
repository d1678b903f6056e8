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
from videoattn.zoo.protocol import ZooRow, locate_probe, locate_weights
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
        row = find_row(args.name)
        print(f"weights     {(weights := locate_weights(row))}")
        if row.encoder is not None:
            print(f"probe       {locate_probe(row, weights=weights)}")


def _list_rows() -> Iterator[str]:
    width = max(map(len, ZOO))
    yield f"{'name':{width}}  {'data':11}  {'top-1':>5}  {'top-5':>5}  {'params':>7}  {'GMACs':>9}"
    for row in ZOO.values():
        top1, top5 = ("" if share is None else f"{share:.1f}" for share in (row.top1, row.top5))
        cost = f"{row.parameters:7.2f}  {row.gmacs:9.3f}"
        yield f"{row.name:{width}}  {row.dataset:11}  {top1:>5}  {top5:>5}  {cost}"


def _describe(row: ZooRow) -> Iterator[str]:
    if row.top1 is None:
        yield f"{row.name}: {row.title}, an encoder without classes"
    else:
        yield f"{row.name}: {row.title}, trained on {row.dataset}"
        yield f"top-1       {row.top1:.2f} %" + ("" if row.top5 is None else f", top-5 {row.top5:.2f} %")
    yield f"cost        {row.parameters:.2f} M parameters, {row.gmacs:.3f} GMACs of one view"
    yield f"source      {row.source}"
    yield f"licence     {row.licence}"
    for label, text in (("trained by", row.trained_by), ("note", row.note)):
        if text:
            yield f"{label:11} {text}"
    if row.encoder is not None:
        yield f"encoder     {row.encoder.name}: {row.encoder.file}, from {' or '.join(row.encoder.urls)}"
    yield f"{'file' if row.encoder is None else 'probe':11} {row.file}" + (
        "" if row.is_ours else f", from {' or '.join(row.urls)}"
    )
    yield "settings"
    yield from (f"  {key} {value}" for key, value in row.all_settings().items())
