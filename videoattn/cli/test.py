"""Evaluate a model on videos, with several views of each.

Examples:
    videoattn test --cfg Motion/divided_fibonacci_time.yaml
    videoattn test --cfg FILE --weights TimeSformer_divST_8x32_224_K400.pyth DATA.PATH_TO_DATA_DIR data/k400
    videoattn test --weights runs/motion/checkpoints/checkpoint_best.pyth TEST.NUM_SPATIAL_CROPS 1
    torchrun --nproc_per_node 8 -m videoattn test --cfg FILE --weights FILE TEST.BATCH_SIZE 64 TEST.PRECISION bf16
    videoattn test --zoo motion_timesformer_fibonacci
    videoattn test --zoo timesformer_base_k400 DATA.PATH_TO_DATA_DIR data/k400
    videoattn test --zoo vjepa2_large_ssv2 --weights vitl.pt --probe ssv2-vitl-16x2x3.pt DATA.PATH_TO_DATA_DIR data/ssv2

--zoo evaluates a row of model_zoo.md by the protocol that its published accuracy is of, and compares. Weights are
fetched unless --weights names them; the clips of this project's own rows are rendered into the cache.
Without --weights and TEST.CHECKPOINT_FILE_PATH, the best checkpoint in OUTPUT_DIR/checkpoints is taken, or else the
newest; where there is none, a model called transformers/FOLDER has the weights of its folder. A training checkpoint of
this project carries its settings, so that --cfg may be left out. results.json, predictions.csv, config.yaml and the
confusion matrix go to TEST.SAVE_RESULTS_PATH, by default OUTPUT_DIR/test.
"""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from videoattn.cli.programs import make_parser
from videoattn.config import Config
from videoattn.config.load import (
    ConfigReport,
    add_config_arguments,
    dump_config,
    format_report,
    load_config_text,
    load_config_with_report,
    parse_overrides,
)
from videoattn.data import build_loader, build_prepare
from videoattn.data.lists import VideoList, check_same_order
from videoattn.data.lists.class_folders import format_counts
from videoattn.data.lists.missing import check_videos
from videoattn.engine.checkpoint.files import BEST, list_checkpoints
from videoattn.engine.distributed import init_distributed, shared_errors, shutdown
from videoattn.engine.evaluate import Aggregate, EvaluationOptions, evaluate
from videoattn.engine.log import logger, set_up_logging
from videoattn.engine.results import Results
from videoattn.files import atomic_write, content_sha256
from videoattn.models import build_model
from videoattn.models.registry import find_spec
from videoattn.models.weights.departures import Departure, describe_data
from videoattn.models.weights.files import read_weight_file
from videoattn.models.weights.load import LoadReport, load_weights
from videoattn.zoo.prepare import prepare_row
from videoattn.zoo.protocol import ZooRow, check_class_order, compare
from videoattn.zoo.rows import find_row


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser("test", __doc__)
    parser.add_argument("--zoo", metavar="NAME", help="a row of model_zoo.md, instead of --cfg")
    parser.add_argument("--weights", metavar="FILE", help="the checkpoint; the same as TEST.CHECKPOINT_FILE_PATH FILE")
    parser.add_argument("--probe", metavar="FILE", help="a probe's file, where the checkpoint holds its encoder alone")
    add_config_arguments(parser)
    args = parser.parse_args(argv)
    overrides = parse_overrides(args)
    row, probe = None, None if args.probe is None else Path(args.probe)
    if args.zoo is None:
        cfg, config_report = read_config(args.cfg, args.weights, overrides)
        weights = find_weights(cfg)
    elif args.cfg is not None:
        raise ValueError("--zoo brings its own settings: expected KEY VALUE pairs and no --cfg FILE")
    else:
        row = find_row(args.zoo)
        cfg, weights, probe = prepare_row(row, args.weights, overrides, args.probe)
        config_report = ConfigReport()
    folder = Path(cfg.test.save_results_path or Path(cfg.output_dir, "test"))

    process = init_distributed(cfg.dist_backend, cfg.device)
    try:
        if process.is_main:
            make_folder(folder, "TEST.SAVE_RESULTS_PATH" if cfg.test.save_results_path else "OUTPUT_DIR")
            set_up_logging(folder)
        for line in format_report(config_report, args.verbose).splitlines():
            logger.info("%s", line)
        for path, what in ((weights, "checkpoint"), (probe, "probe")):
            if path is not None and not path.exists():
                raise ValueError(f"{path}: no such file or folder; expected a {what} to evaluate")
        loader = build_loader(cfg, "test", rank=process.rank, world_size=process.world_size,
                              local_world_size=process.local_world_size)  # fmt: skip
        names = loader.class_names
        if names is not None and len(names) != cfg.model.num_classes:
            raise ValueError(f"MODEL.NUM_CLASSES is {cfg.model.num_classes}, {loader.videos.source} has {len(names)}")
        with shared_errors():
            if process.is_main:
                check_videos(loader.videos, limit=1.0)
        model = build_model(cfg)
        load_report = load_weights(
            model,
            weights,
            allow_resize=cfg.test.allow_resize,
            allow_new_layers=cfg.test.allow_new_layers,
            data=describe_data(cfg, testing=True, class_names=names),
            probe=probe,
        )
        logger.info("%s", load_report)
        check_same_order(names, loader.videos.source, load_report.class_names, str(weights))
        if row is not None:
            check_class_order(row, names)
        with closing(loader):
            results = evaluate(
                model.to(process.device),
                loader,
                build_prepare(cfg, "test", process.device),
                EvaluationOptions(
                    num_classes=cfg.model.num_classes,
                    num_views=cfg.test.num_ensemble_views * cfg.test.num_spatial_crops,
                    batch_size=max(1, cfg.test.batch_size // process.local_world_size),
                    method=cfg.data.ensemble_method,
                    aggregate=choose_aggregate(cfg),
                    precision=cfg.test.precision,
                ),
                process,
            )
        if process.is_main:
            changed = [] if row is None else row.departures(overrides)
            results.write(folder, names, describe(cfg, loader.videos, load_report, changed, weights, probe))
            with atomic_write(folder / "config.yaml") as temporary:
                temporary.write_text(dump_config(cfg), encoding="utf-8")
            lines = results.lines(beside_accuracy(load_report))
            if not results.num_labelled:
                lines.append("no video of the list has a label, so there is no accuracy")
            if loader.videos.left_out:
                lines.append(f"ignored files that are not videos, by ending: {format_counts(loader.videos.left_out)}")
            if row is not None:
                lines += compare_with_row(row, changed, cfg, results)
            for line in lines:
                logger.info("%s", line)
            logger.info("results in %s", folder)
        if not results.videos:
            raise ValueError(f"no video could be evaluated; the first: {results.failures[0].reason}")
    finally:
        shutdown()


def make_folder(folder: Path, key: str) -> None:
    """Make the folder of the results. Raises OSError that names the setting where that is not possible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"{key}: {folder} can't be made a folder for results: {error.strerror}") from error


def read_config(path: Path | None, weights: str | None, overrides: list[str]) -> tuple[Config, ConfigReport]:
    """Return the settings of `path`, else those that the checkpoint carries, with overrides."""
    if weights is not None:
        overrides = [*overrides, "TEST.CHECKPOINT_FILE_PATH", weights]
    if path is not None or weights is None:
        return load_config_with_report(path, overrides)
    text = read_weight_file(weights).cfg
    if text is None:
        raise ValueError(f"{weights} does not carry its settings; expected --cfg FILE as well")
    return load_config_text(text, f"the settings in {weights}", overrides)


def beside_accuracy(report: LoadReport) -> str:
    """Return what a reader of the accuracy has to know of the weights; empty where they are used as trained."""
    if report.departures is None:
        said = "the checkpoint does not say its settings, so they were not compared"
    else:
        said = "; ".join(f"{one.key} {one.here} instead of {one.checkpoint}" for one in report.departures)
        said = f"not as trained: {said}" if said else ""
    random = f"{len(report.initialised)} tensors have random initial values" if report.initialised else ""
    return "; ".join(filter(None, [said, random]))


def compare_with_row(row: ZooRow, changed: Sequence[Departure], cfg: Config, results: Results) -> list[str]:
    """Return published and measured accuracy of a row, in lines; `changed` settings differ from the published ones."""
    shares = [results.top_k(k) for k in (1, 5)]
    if shares[0] is None:
        return [f"{row.name}: no labelled video was evaluated, so that nothing can be compared"]
    top1, top5 = (None if share is None else 100 * share for share in shares)
    told = ", ".join(f"{one.key} {one.here} instead of {one.checkpoint}" for one in changed)
    lines = [f"not the published protocol: {told}"] if changed else []
    decoder = "PyAV" if cfg.data.decoding_backend == "auto" else cfg.data.decoding_backend
    assert top1 is not None
    return [*lines, *compare(row, top1, top5, len(results.videos), len(results.paths), decoder)]


def find_weights(cfg: Config) -> Path:
    """Return the checkpoint that the settings name, else the run's best or newest one."""
    if cfg.test.checkpoint_file_path:
        return Path(cfg.test.checkpoint_file_path)
    folder = Path(cfg.output_dir, "checkpoints")
    if (folder / BEST).is_file():
        return folder / BEST
    existing = list_checkpoints(folder)
    own = find_spec(cfg.model.model_name).own_weights
    if not existing and own is not None and (named := own()) is not None:
        return named
    if not existing:
        raise ValueError(f"{folder} holds no checkpoint; expected --weights FILE, or the OUTPUT_DIR of a training run")
    return existing[-1].path


def choose_aggregate(cfg: Config) -> Aggregate:
    """Return the scores to combine: those of TEST.AGGREGATE, or for auto those that the model's spec names."""
    return find_spec(cfg.model.model_name).aggregate if cfg.test.aggregate == "auto" else cfg.test.aggregate


def describe(
    cfg: Config, videos: VideoList, report: LoadReport, changed: Sequence[Departure], weights: Path, probe: Path | None
) -> dict[str, Any]:
    """Return what results.json says about protocol and origin; the views and how they are combined are there already.

    "departures" are null where the checkpoint does not say its settings; `changed` ones are of a zoo row's protocol.
    """
    data, test = cfg.data, cfg.test
    protocol: dict[str, Any] = {"clips": test.num_ensemble_views, "crops": test.num_spatial_crops}
    protocol |= {"dataset": test.dataset, "split": test.split, "segment_clips": test.segment_clips}
    protocol |= {"crop_rounding": test.crop_rounding}
    protocol |= data.model_dump(include={"num_frames", "sampling_rate", "target_fps", "frames_fps", "sampling",
                                         "num_segments", "use_offset_sampling", "train_jitter_scales",
                                         "test_crop_size", "mean", "std", "decoding_backend",
                                         "decoding_short_size"})  # fmt: skip
    if data.sampling == "auto":
        protocol["sampling"] = "segments" if test.dataset == "ssv2" else "dense"
    kept = {name: value for name, value in asdict(report).items() if name not in ("class_names", "departures")}
    departures = None if report.departures is None else [one._asdict() for one in report.departures]
    if changed:
        departures = [*(departures or []), *(one._asdict() for one in changed)]
    protocol["channel_order"] = "BGR" if data.reverse_input_channel else "RGB"
    sums = {"sha256": content_sha256(weights), **({} if probe is None else {"probe_sha256": content_sha256(probe)})}
    return {
        "model": cfg.model.model_name,
        "protocol": protocol,
        "departures": departures,
        "annotations": {"path": videos.source, "sha256": videos.digest(), "left_out": dict(videos.left_out)},
        "checkpoint": {**kept, "loaded": len(report.loaded), **sums},
    }
