"""Rendering of Motion: encoded clips, their lists in two formats, and their settings.

A folder contains videos/, train.csv, val.csv, test.csv (val again), class_names.txt, the same clips in the list format
of Something-Something-V2, and motion.json with the settings. A clip depends only on the seed, its split and its number.
"""

import json
import multiprocessing
import sys
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from videoattn.data.motion.scenes import LONG_CLASSES, SHORT_CLASSES, render_long, render_short
from videoattn.files import atomic_write
from videoattn.seeding import derive_seed

FPS = 10
DONE, STARTED = "motion.json", "motion.unfinished.json"  # both hold the settings of the clips
CLASSES = {"short": SHORT_CLASSES, "long": LONG_CLASSES}


@dataclass(frozen=True)
class Settings:
    """Settings that decide the clips of a folder; sizes in pixels, both even."""

    variant: str
    num_train: int
    num_val: int
    width: int
    height: int
    num_frames: int
    seed: int

    def __post_init__(self) -> None:
        if self.variant not in CLASSES:
            raise ValueError(f"--variant expects one of {', '.join(CLASSES)}, got {self.variant!r}")
        if min(self.width, self.height) < 32 or self.width % 2 or self.height % 2:
            raise ValueError(f"--size expects even numbers from 32 on, got {self.width}x{self.height}")
        shortest = 8 if self.variant == "short" else 24
        if self.num_frames < shortest:
            raise ValueError(f"--num-frames expects {shortest} or more for {self.variant} clips, got {self.num_frames}")
        if min(self.num_train, self.num_val) < 1:
            raise ValueError(f"--num-train and --num-val expect 1 or more, got {self.num_train} and {self.num_val}")


def make_motion(folder: Path, settings: Settings, *, num_workers: int = 1, overwrite: bool = False) -> None:
    """Render the missing clips of a data set and list them; a complete one is left unchanged.

    Several processes may ask for the same folder: one renders, the others wait. Raises ValueError if the folder
    contains clips with other settings, also of a stopped run, unless `overwrite`.
    """
    from filelock import FileLock

    if noted_settings(folder / DONE) != asdict(settings):  # no lock without need: the folder may be read-only
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            if noted_settings(folder / DONE) != asdict(settings):
                check_folder(folder, settings, overwrite)
                render_missing(folder, settings, num_workers)
                return
    print(f"{folder} is complete: {settings.num_train} training and {settings.num_val} validation clips")


def noted_settings(file: Path) -> dict[str, Any] | None:
    return json.loads(file.read_text()) if file.exists() else None


def check_folder(folder: Path, settings: Settings, overwrite: bool) -> None:
    """Raise ValueError if the folder contains clips with other settings; with `overwrite`, remove them instead."""
    asked = asdict(settings)
    for noted in (folder / DONE, folder / STARTED):
        made = noted_settings(noted)
        if made in (None, asked):
            continue
        if not overwrite:
            changed = [
                f"{key} {made.get(key)} there, {asked[key]} asked" for key in asked if made.get(key) != asked[key]
            ]
            raise ValueError(
                f"{folder} contains clips made with other settings ({', '.join(changed)}); name another folder, or add "
                "--overwrite"
            )
        for clip in [*(folder / "videos").glob("train_*.mp4"), *(folder / "videos").glob("val_*.mp4")]:
            clip.unlink()
        noted.unlink()


def render_missing(folder: Path, settings: Settings, num_workers: int) -> None:
    """Render the clips that do not exist, and write the lists."""
    from tqdm import tqdm

    (folder / "videos").mkdir(exist_ok=True)
    for half_written in (folder / "videos").glob(".*.tmp"):  # of a run that was killed
        half_written.unlink()
    write_settings(folder / STARTED, settings)
    clips = [(split, i) for split, n in (("train", settings.num_train), ("val", settings.num_val)) for i in range(n)]
    render = partial(write_clip, folder, settings)
    context = multiprocessing.get_context("spawn" if sys.platform == "darwin" else "fork")
    with context.Pool(max(1, min(num_workers, len(clips)))) as pool:
        results = pool.imap_unordered(render, clips, chunksize=16)
        for _ in tqdm(results, total=len(clips), desc="rendering", unit="clip", disable=not sys.stderr.isatty()):
            pass
    write_lists(folder, settings)
    write_settings(folder / DONE, settings)
    (folder / STARTED).unlink()
    classes = len(CLASSES[settings.variant])
    print(f"{folder}: {settings.num_train} training and {settings.num_val} validation clips of {classes} classes")


def write_settings(file: Path, settings: Settings) -> None:
    with atomic_write(file) as temporary:
        temporary.write_text(json.dumps(asdict(settings), indent=1) + "\n")


def label_of(settings: Settings, clip: int) -> int:
    """Return the class of a clip; classes take turns, so that every split is balanced."""
    return clip % len(CLASSES[settings.variant])


def clip_name(split: str, clip: int) -> str:
    return f"{split}_{clip:06d}"


def write_clip(folder: Path, settings: Settings, which: tuple[str, int]) -> None:
    split, clip = which
    path = folder / "videos" / f"{clip_name(split, clip)}.mp4"
    if path.exists():
        return
    rng = np.random.default_rng(derive_seed(settings.seed, "motion", settings.variant, split, clip))
    draw = render_short if settings.variant == "short" else render_long
    frames = draw(label_of(settings, clip), settings.num_frames, settings.height, settings.width, rng)
    with atomic_write(path) as temporary:
        encode(frames, temporary)


def encode(frames: np.ndarray, path: Path) -> None:
    """Write uint8 frames [T, H, W, 3] as H.264 in mp4, or as MPEG-4 where PyAV lacks an H.264 encoder."""
    import av

    name = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    options = {"qmin": "2", "qmax": "4"}
    if name == "libx264":  # whose macroblock tree does not give small videos the same bytes each time
        options = {"crf": "20", "preset": "veryfast", "x264-params": "mbtree=0"}
    with av.open(str(path), "w", format="mp4") as container:
        stream: Any = container.add_stream(name, rate=FPS, options=options)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            container.mux(stream.encode(picture.reformat(format="yuv420p", threads=1)))
        container.mux(stream.encode())


def write_lists(folder: Path, settings: Settings) -> None:
    """Write annotation files in both formats, for the same clips."""
    classes = CLASSES[settings.variant]
    names, templates = list(classes), list(classes.values())
    plain = [template.replace("[", "").replace("]", "") for template in templates]
    clips = {
        split: [(clip_name(split, i), label_of(settings, i)) for i in range(n)]
        for split, n in (("train", settings.num_train), ("val", settings.num_val))
    }
    texts = {"class_names.txt": "".join(f"{name}\n" for name in names)}
    for split, source in (("train", "train"), ("val", "val"), ("test", "val")):
        texts[f"{split}.csv"] = "".join(f"videos/{name}.mp4 {label}\n" for name, label in clips[source])
    ssv2: dict[str, Any] = {"labels": {template: str(label) for label, template in enumerate(plain)}}
    for split, source in (("train", "train"), ("validation", "val")):
        ssv2[split] = [
            {
                "id": name,
                "label": plain[label].replace("something", "a shape"),
                "template": templates[label],
                "placeholders": ["a shape"] * templates[label].count("["),
            }
            for name, label in clips[source]
        ]
    ssv2["test"] = [{"id": name} for name, _ in clips["val"]]
    texts |= {f"something-something-v2-{name}.json": json.dumps(content, indent=0) for name, content in ssv2.items()}
    for file, text in texts.items():
        with atomic_write(folder / file) as temporary:
            temporary.write_text(text)
