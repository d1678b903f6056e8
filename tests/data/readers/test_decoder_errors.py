"""Any error of a decoding library costs one video, named in DecodeError; errors of this project's code stay visible."""

import io
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.data.readers.test_decode import BACKENDS
from tests.shared_files import SHARED
from videoattn.data.augment.transforms import TrainTransform
from videoattn.data.check.probe import Prober, ProbeTask, read_probe
from videoattn.data.clips.dataset import Draw, VideoDataset
from videoattn.data.clips.sampling import ClipSampler
from videoattn.data.lists import read_annotations
from videoattn.data.prepare.encode import Encoded, Encoder, EncodeTask
from videoattn.data.prepare.video import EncodeSettings, encode_video
from videoattn.data.readers.open_video import DecodeError, open_video

ERRORS = [
    AttributeError("'NoneType' object has no attribute 'x'"),
    ZeroDivisionError("division by zero"),
    UnicodeDecodeError("utf-8", b"caf\xe9", 3, 4, "unexpected end of data"),
    KeyError("codec"),
    MemoryError(),
    struct.error("unpack requires a buffer of 4 bytes"),
    StopIteration(),
]


def titled(make: Callable[..., Path], name: str, title: bytes) -> Path:
    """A video whose title has other bytes than UTF-8 allows."""
    import av

    source, path = make(f"plain_{name}"), make(f"plain_{name}").with_name(name)
    with av.open(str(source)) as plain, av.open(str(path), "w") as target:
        target.metadata["title"] = "x" * len(title)
        stream = target.add_stream_from_template(plain.streams.video[0])
        stream.metadata["title"] = stream.metadata["language"] = "x" * len(title)
        for packet in plain.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    content = path.read_bytes()
    assert b"x" * len(title) in content
    path.write_bytes(content.replace(b"x" * len(title), title))
    return path


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.mov"])
def test_titles_in_any_encoding_leave_a_video_playable(make: Callable[..., Path], name: str) -> None:
    path = titled(make, name, "caf\xe9 \xfc\xdf".encode("latin-1"))
    for backend in BACKENDS:
        with open_video(path, backend) as reader, open_video(path.with_name(f"plain_{name}"), backend) as plain:  # type: ignore[arg-type]
            assert torch.equal(reader.read([0, 20, 39]), plain.read([0, 20, 39]))
    assert encode_video(str(path), path.with_name("small.mp4"), EncodeSettings()) == 40


@pytest.mark.parametrize(("name", "codec", "known", "unknown"), [("a.webm", "libvpx", b"V_VP8", b"V_VQ8"),
                                                                 ("a.mp4", "libx264", b"avc1", b"xyz1")])  # fmt: skip
def test_a_codec_without_decoder_is_a_video_that_cannot_be_decoded(
    make: Callable[..., Path], name: str, codec: str, known: bytes, unknown: bytes
) -> None:
    path = make(name, codec=codec)
    path.write_bytes(path.read_bytes().replace(known, unknown))
    for backend in BACKENDS:
        with pytest.raises(
            DecodeError, match=f"{name}: cannot be opened as a video: there is no decoder for its codec"
        ):
            open_video(path, backend)  # type: ignore[arg-type]
    probe = Prober()(ProbeTask(str(path)))
    assert probe is not None and probe.problem == "not_a_video"
    with pytest.raises(DecodeError, match="no decoder"):
        encode_video(str(path), path.with_name("small.mp4"), EncodeSettings())


@pytest.mark.skipif(not (SHARED / "cases/metadata").is_dir(), reason="the reported files are not at hand")
@pytest.mark.parametrize("backend", BACKENDS)
def test_reported_files_play_or_cannot_be_decoded(backend: Any) -> None:
    with open_video(SHARED / "cases/metadata/latin.mp4", backend) as reader:
        assert reader.read([0, reader.num_frames - 1]).shape == (2, 64, 64, 3)
    with pytest.raises(DecodeError, match="no_codec.webm: cannot be opened as a video: there is no decoder"):
        open_video(SHARED / "cases/metadata/no_codec.webm", backend)


def raising(error: Exception) -> Callable[..., Any]:
    def fail(*arguments: object, **options: object) -> Any:
        raise error

    return fail


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_whatever_a_library_raises_on_opening_is_a_decode_error(
    make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    av, decord, pictures = (pytest.importorskip(name) for name in ("av", "decord", "PIL.Image"))
    path = make("a.mp4", num_frames=2)
    (path.parent / "frames").mkdir()
    pictures.new("RGB", (8, 8)).save(path.parent / "frames/1.png")
    with monkeypatch.context() as patch:
        patch.setattr(decord, "VideoReader", raising(error))
        with pytest.raises(DecodeError, match="a.mp4: decord cannot open it: .*" + type(error).__name__):
            open_video(path, "decord")
    with monkeypatch.context() as patch:
        patch.setattr(pictures, "open", raising(error))
        with open_video(path.parent / "frames") as reader, pytest.raises(DecodeError, match="1.png: cannot be decoded"):
            reader.read([0])
    with monkeypatch.context() as patch:
        patch.setattr(av, "open", raising(error))
        for video in (path, path.read_bytes()):
            with pytest.raises(DecodeError, match="cannot be opened as a video: .*" + type(error).__name__):
                open_video(video)
        probe = Prober()(ProbeTask(str(path)))
        assert probe is not None and probe.problem == "not_a_video"
        answer = Encoder(path.parent, path.parent, EncodeSettings())(EncodeTask("b.mp4", str(path), None))
        assert answer is not None and answer.problem == "not_a_video"


class Failing(io.BytesIO):
    """A file whose reading fails with any error once there is one."""

    name = "remote.mkv"
    error: Exception | None = None

    def read(self, size: int | None = -1) -> bytes:
        if self.error is not None:
            raise self.error
        return super().read(size)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("backend", ["auto", "pyav"])
def test_whatever_reading_a_file_raises_is_a_decode_error(
    make: Callable[..., Path], backend: Any, error: Exception
) -> None:
    file = Failing(make("a.mkv", codec="mjpeg", pixels="yuvj420p", size=(96, 128)).read_bytes())
    assert len(file.getvalue()) > 2**15  # more than is read at once
    with open_video(file, backend) as reader:
        file.error = error
        for read in (lambda: reader.read([39]), reader.decode_all):
            with pytest.raises(DecodeError, match="remote.mkv: "):
                read()
    with pytest.raises(DecodeError, match="remote.mkv: cannot be opened as a video"):
        open_video(file, backend)


def test_whatever_decord_raises_on_reading_is_a_decode_error(
    make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    decord = pytest.importorskip("decord")
    path = make("a.mp4")
    for name, error in (("get_batch", ValueError("negative dimensions")), ("next", OverflowError("too large"))):
        with monkeypatch.context() as patch, open_video(path, "decord") as reader:
            reader.sequential_reason = "asked for" * (name == "next")
            patch.setattr(decord.VideoReader, name, raising(error))
            with pytest.raises(DecodeError, match=r"a.mp4: decord cannot read frames \[3\]: "):
                reader.read([3])


def test_frames_for_which_there_is_no_memory_are_a_decode_error(
    make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from videoattn.data.readers import base as video_reader

    path = make("a.mp4")
    with open_video(path) as reader:
        monkeypatch.setattr(video_reader.np, "empty", raising(MemoryError()))
        with pytest.raises(DecodeError, match="a.mp4: 2 frames do not fit into memory"):
            reader.read([0, 1])


def test_a_mistake_in_sampling_is_not_taken_for_a_bad_video(
    make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make("a.mp4").parent
    (folder / "train.csv").write_text("a.mp4 0\n")
    videos = read_annotations("kinetics", str(folder), "train", separator=" ", prefix=str(folder), num_classes=1)
    dataset = VideoDataset(
        videos, ClipSampler("dense", 4, 2), TrainTransform(crop_size=32, jitter_scales=(36, 44)), seed=0
    )
    monkeypatch.setattr(ClipSampler, "train", raising(ZeroDivisionError("a mistake")))
    with pytest.raises(ZeroDivisionError, match="a mistake"):
        dataset[Draw(0, 0)]


def test_a_cover_picture_alone_is_no_video(tmp_path: Path) -> None:
    import av
    from av.stream import Disposition

    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as container:
        sound: Any = container.add_stream("aac", rate=44100, layout="mono")
        cover: Any = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = Disposition.attached_pic
        container.mux(cover.encode(av.VideoFrame(64, 48, "yuvj420p")))
        container.mux(cover.encode())
        samples = torch.zeros(1, 1024).numpy()
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(sound.encode(frame))
        container.mux(sound.encode())
    for backend in BACKENDS:
        with pytest.raises(DecodeError, match="song.mp4: has no video stream, only a cover picture") as caught:
            open_video(path, backend)  # type: ignore[arg-type]
        assert caught.value.kind == "no_video_stream"


@pytest.mark.skipif(os.name != "posix", reason="names of files are bytes on POSIX systems alone")
def test_a_name_that_is_not_utf8_plays_and_is_noted(make: Callable[..., Path]) -> None:
    path = make("a.mp4")
    odd = os.fsdecode(os.fsencode(path.parent) + b"/caf\xe9.mp4")
    os.rename(path, odd)
    for backend in BACKENDS:
        with open_video(odd, backend) as reader:  # type: ignore[arg-type]
            assert reader.read([0, 39]).shape == (2, 48, 64, 3)
    probe = Prober()(ProbeTask(odd))
    assert probe is not None and not probe.problem and read_probe(probe.to_json()) == probe
    probe.to_json().encode()


NO_FILE_HAS_SUCH_A_NAME = ["a\0b.mp4", "\ud800.mp4", "x\0.tar/a.mp4@0+5", "\ud800.tar/a.mp4@0+5", "\0/img_{1..3}.png"]


@pytest.mark.parametrize("name", NO_FILE_HAS_SUCH_A_NAME, ids=ascii)
def test_names_that_no_file_can_have_are_missing_videos(tmp_path: Path, name: str) -> None:
    path = f"{tmp_path}/{name}"
    with pytest.raises(DecodeError), open_video(path) as reader:
        reader.read([0])
    probe = Prober()(ProbeTask(path))
    assert probe is not None and probe.problem in ("missing", "unreadable")
    if ".tar" not in name:
        answer = Encoder(tmp_path, tmp_path, EncodeSettings())(EncodeTask("b.mp4", path, None))
        assert isinstance(answer, Encoded) and answer.problem == "missing"


def test_places_beyond_any_tar_are_beyond_its_end(tmp_path: Path) -> None:
    (tmp_path / "train-000000.tar").write_bytes(bytes(1024))
    path = f"{tmp_path}/train-000000.tar/a.mp4@{10**30}+{10**30}"
    with pytest.raises(DecodeError, match="the shard has 0 of these"):
        open_video(path)
