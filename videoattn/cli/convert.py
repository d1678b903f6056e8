"""Rewrite a checkpoint in another project's names and layout, or in ours; every tensor is used, or nothing is written.

Examples:
    videoattn convert runs/mine/checkpoints/checkpoint_best.pyth mine.pyth --to timesformer
    videoattn convert MViTv2_S_16x4_k400_f302660347.pyth mvit_v2_s.safetensors --to torchvision
    videoattn convert TimeSformer_divST_8x32_224_K400.pyth timesformer_k400 --to huggingface
    videoattn convert vitl.pt vjepa2_ssv2.safetensors --probe ssv2-vitl-16x2x3.pt --clip-size 16 256 256 --to videoattn

--to: timesformer (its release), huggingface (TimeSformer, VideoMAE and V-JEPA 2 in transformers), vit (an image ViT,
from a space-only model), slowfast, torchvision, pytorchvideo (MViT), videomae, vjepa2 (their releases), videoattn
(ours). The ending of OUT chooses the container: .safetensors, or .pyth, .pt, .pth with {"model_state": ...}. Any other
OUT with --to huggingface is a folder that transformers' from_pretrained loads: config.json, model.safetensors and
preprocessor_config.json. IN may be such a folder. What IN does not say of its model is asked for by name.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from videoattn.cli.programs import make_parser
from videoattn.engine.log import logger, set_up_logging
from videoattn.models.settings import read_description
from videoattn.models.weights.containers import PICKLES
from videoattn.models.weights.departures import refuse_replaced_attention
from videoattn.models.weights.files import read_weight_file
from videoattn.models.weights.load import count_heads, from_checkpoint, list_families, save_weights
from videoattn.models.weights.write_folder import check_target, save_folder


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser("convert", __doc__)
    parser.add_argument("source", metavar="IN", help="the checkpoint to read: a file, or a folder of transformers")
    parser.add_argument("target", metavar="OUT", type=Path, help="the file, or folder of transformers, to write")
    parser.add_argument("--to", choices=list_families(), required=True, help="names and layout to write")
    parser.add_argument("--num-heads", type=int, metavar="N", help="heads of attention, if the file does not tell")
    parser.add_argument("--probe", metavar="FILE", help="a probe on the tokens of IN, a V-JEPA 2 encoder")
    parser.add_argument("--clip-size", type=int, nargs=3, metavar=("T", "H", "W"), help="if the file does not tell")
    parser.add_argument("--no-ema", action="store_true", help="use the last weights of a training, not their average")
    parser.add_argument("--trust", action="store_true", help="run code in pickles; only for your own files")
    parser.add_argument("--as-dense", action="store_true", help="leave out attention methods, which OUT can't describe")
    parser.add_argument("--overwrite", action="store_true", help="replace the file OUT if it exists")
    args = parser.parse_args(argv)
    as_folder = args.to == "huggingface" and args.target.suffix not in (".safetensors", *PICKLES)
    if as_folder:
        check_target(args.target)
    elif args.target.exists() and not args.overwrite:
        raise ValueError(f"{args.target} exists; add --overwrite to replace it")
    elif not args.target.resolve().parent.is_dir():
        raise ValueError(f"OUT {args.target}: there is no folder {args.target.parent}")

    set_up_logging(None)
    ema: Any = False if args.no_ema else "auto"
    clip_size = tuple(args.clip_size) if args.clip_size else None
    model: Any = from_checkpoint(args.source, num_heads=args.num_heads, clip_size=clip_size, trust=args.trust, ema=ema,
                                 probe=args.probe)  # fmt: skip
    source = read_weight_file(args.source, trust=args.trust, ema=ema)
    if as_folder:
        mean, std = read_mean_std(source.cfg)
        save_folder(model, args.target, class_names=source.class_names, mean=mean, std=std, as_dense=args.as_dense)
        logger.info("written: %s (%s)", args.target, ", ".join(sorted(path.name for path in args.target.iterdir())))
        return
    if args.to != "videoattn" and not args.as_dense:
        refuse_replaced_attention(model, args.to)
    cfg = source.cfg if args.to == "videoattn" else None
    arguments = None
    if args.to == "videoattn" and cfg is None and hasattr(model, "arguments"):
        arguments = {**model.arguments, "clip_size": model.clip_size}
    heads = count_heads(model)
    save_weights(model.state_dict(), args.target, args.to, num_heads=heads, clip_size=model.clip_size, cfg=cfg,
                 arguments=arguments, class_names=source.class_names if args.to == "videoattn" else None)  # fmt: skip
    logger.info("written: %s (%s, %.1f MB)", args.target, args.to, args.target.stat().st_size / 1e6)


def read_mean_std(cfg: str | None) -> tuple[Sequence[float] | None, Sequence[float] | None]:
    """Return DATA.MEAN and DATA.STD of the settings that a checkpoint of ours carries; None where it carries none."""
    if cfg is None:
        return None, None
    try:
        data = read_description(cfg).data
    except ValueError:  # of another project
        return None, None
    return data.mean, data.std
