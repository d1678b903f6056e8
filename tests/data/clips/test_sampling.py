import math
import random
from typing import Any

import pytest

from videoattn.data.clips.sampling import (
    ClipSampler,
    dense_indices,
    dense_test_start,
    interleaved_indices,
    segment_indices,
    window_indices,
    window_length,
)

K400 = ClipSampler("dense", num_frames=8, sampling_rate=32, target_fps=30)
MVIT = ClipSampler("dense", num_frames=16, sampling_rate=4, target_fps=30, use_offset=True)
SSV2 = ClipSampler("segments", num_frames=8)
VIDEOMAE = ClipSampler("by_index", num_frames=16, sampling_rate=4)
VIDEOMAE_SSV2 = ClipSampler("interleaved", num_frames=16)
VJEPA2 = ClipSampler("by_index", num_frames=32, sampling_rate=4, num_segments=2)


def test_dense_test_clips_without_offset_begin_at_equal_parts_of_the_slack() -> None:
    # 300 frames at 30 fps, a window of 4 * 8 = 32 frames: slack 268; three clips begin at 0, 89 1/3 and 178 2/3
    sampler = ClipSampler("dense", num_frames=4, sampling_rate=8, target_fps=30)
    assert sampler.test(300, 30, 0, 3) == [0, 10, 20, 31]  # 0, 10 1/3, 20 2/3, 31
    assert sampler.test(300, 30, 1, 3) == [89, 99, 110, 120]  # 89 1/3, 99 2/3, 110, 120 1/3
    assert sampler.test(300, 30, 2, 3) == [178, 189, 199, 209]  # 178 2/3, 189, 199 1/3, 209 2/3


def test_single_test_clip_is_the_first_without_offset_and_the_centre_with_it() -> None:
    assert K400.test(300, 30) == [0, 36, 72, 109, 145, 182, 218, 255]  # linspace(0, 255, 8), step 36.43
    assert MVIT.test(300, 30)[0] == 118  # floor((300 - 64) / 2)
    assert MVIT.test(300, 30)[-1] == 118 + 63


def test_offset_clips_reach_both_ends_in_whole_steps() -> None:
    starts = [MVIT.test(300, 30, clip, 5)[0] for clip in range(5)]
    assert starts == [0, 59, 118, 177, 236]  # floor(236 / 4) = 59
    assert MVIT.test(300, 30, 4, 5)[-1] == 299
    assert [dense_test_start(301, 64, clip, 5, use_offset=True) for clip in (0, 4)] == [0, 236]  # floor(237 / 4) = 59


def test_window_lasts_as_long_at_any_frame_rate() -> None:
    assert window_length(25, num_frames=8, sampling_rate=32, target_fps=30) == pytest.approx(213 + 1 / 3)
    assert window_length(15, num_frames=16, sampling_rate=4, target_fps=30) == 32
    indices = dense_indices(100, 15, num_frames=4, sampling_rate=4, target_fps=30, start=10.0)
    assert indices == [10, 12, 14, 17]  # window of 8: linspace(10, 17, 4) = 10, 12 1/3, 14 2/3, 17


def test_videos_shorter_than_the_window_repeat_the_last_frame() -> None:
    assert K400.test(100, 30) == [0, 36, 72, 99, 99, 99, 99, 99]
    assert K400.test(100, 30, 4, 5) == K400.test(100, 30, 0, 5)
    assert K400.train(100, 30, random.Random(0)) == K400.test(100, 30)
    assert MVIT.test(50, 30, 0, 1)[0] == 0
    assert K400.is_short(255, 30) and not K400.is_short(256, 30)
    assert not K400.is_short(214, 25) and K400.is_short(213, 25)


def test_a_single_frame_is_repeated() -> None:
    for sampler in (K400, MVIT, SSV2):
        assert sampler.test(1, 30) == [0] * sampler.num_frames
        assert sampler.train(1, 30, random.Random(3)) == [0] * sampler.num_frames
        assert sampler.is_short(1, 30)


def test_random_windows_fit_reach_the_whole_slack_and_follow_the_generator() -> None:
    first = [K400.train(300, 30, random.Random(seed)) for seed in range(300)]
    assert first == [K400.train(300, 30, random.Random(seed)) for seed in range(300)]
    starts = {indices[0] for indices in first}
    assert starts == set(range(44))  # slack 44: uniform in [0, 44)
    assert all(indices[-1] - indices[0] in (255, 256) and indices[-1] <= 299 for indices in first)
    start = random.Random(7).uniform(0, 44)
    assert K400.train(300, 30, random.Random(7))[0] == math.floor(start)


def test_segments_take_the_middle_between_rounded_borders() -> None:
    # (50 - 1) / 8 = 6.125; borders 0 6 12 18 24 31 37 43 49
    assert segment_indices(50, 8) == [3, 9, 15, 21, 27, 34, 40, 46]
    # (5 - 1) / 8 = 0.5; borders round half to even: 0 0 1 2 2 2 3 4 4
    assert segment_indices(5, 8) == [0, 0, 1, 2, 2, 2, 3, 4]
    assert SSV2.test(50, 12, 1, 2) == segment_indices(50, 8)


def test_shifted_clips_take_equal_steps_through_each_segment() -> None:
    shifted = ClipSampler("segments", num_frames=8, shifted=True)
    # borders 0 6 12 18 24 31 37 43 49; a quarter and three quarters of 6 or 7 frames, rounded down
    assert shifted.test(50, 12, 0, 2) == [1, 7, 13, 19, 25, 32, 38, 44]
    assert shifted.test(50, 12, 1, 2) == [4, 10, 16, 22, 29, 35, 41, 47]
    assert [shifted.test(50, 12, clip, 3)[0] for clip in range(3)] == [1, 3, 5]
    assert all(shifted.test(n, 12) == SSV2.test(n, 12) == segment_indices(n, 8) for n in range(1, 60))
    with pytest.raises(ValueError, match="clip 2 of 2"):
        shifted.test(50, 12, 2, 2)


def test_shifted_clips_differ_wherever_segments_have_as_many_frames() -> None:
    shifted = ClipSampler("segments", num_frames=8, shifted=True)
    for num_frames in range(18, 80):
        assert not set(shifted.test(num_frames, 12, 0, 2)) & set(shifted.test(num_frames, 12, 1, 2)), num_frames


def test_random_segments_stay_in_their_part_borders_included() -> None:
    rng = random.Random(0)
    drawn = [SSV2.train(50, 12, rng) for _ in range(500)]
    borders = [0, 6, 12, 18, 24, 31, 37, 43, 49]
    for segment in range(8):
        assert {indices[segment] for indices in drawn} == set(range(borders[segment], borders[segment + 1] + 1))
    assert SSV2.is_short(7, 12) and not SSV2.is_short(8, 12)


def test_clips_by_index_are_neighbours_of_one_grid_of_frames_whatever_the_rate() -> None:
    # 300 frames: 0, 4 ... 296 are 75; 59 more than a clip, so that five clips begin at 0, 14.75, 29.5, 44.25 and 59
    clips = [VIDEOMAE.test(300, fps, clip, 5) for clip in range(5) for fps in (12, 30, 59.94)]
    assert clips[::3] == clips[1::3] == clips[2::3]
    assert [clip[0] // 4 for clip in clips[::3]] == [0, 14, 29, 44, 59]
    assert all(clip == list(range(clip[0], clip[0] + 64, 4)) for clip in clips)
    assert clips[-1][-1] == 296
    assert VIDEOMAE.test(300, 30)[0] == 4 * (59 // 2)  # a single clip is centred


def test_short_videos_repeat_the_last_frame_of_the_grid() -> None:
    # 30 frames: 0, 4 ... 28
    assert VIDEOMAE.test(30, 30, 3, 5) == [*range(0, 29, 4), *[28] * 8]
    assert VIDEOMAE.is_short(60, 30) and not VIDEOMAE.is_short(61, 30)


def test_training_windows_by_index_span_whole_frames_and_fill_the_slack() -> None:
    drawn = [VIDEOMAE.train(100, 30, random.Random(seed)) for seed in range(500)]
    assert {indices[0] for indices in drawn} == set(range(36))  # 100 - 64
    # linspace(0, 64, 16), step 64 / 15, the last of them within the window
    assert {tuple(index - indices[0] for index in indices) for indices in drawn} == {
        (0, 4, 8, 12, 17, 21, 25, 29, 34, 38, 42, 46, 51, 55, 59, 63)
    }
    # 40 frames: linspace(0, 40, 10), then the last frame
    short = [0, 4, 8, 13, 17, 22, 26, 31, 35, *[39] * 7]
    assert VIDEOMAE.train(40, 30, random.Random(0)) == short


def test_interleaved_clips_alternate_on_one_even_grid() -> None:
    for num_frames in (1, 7, 16, 23, 50, 64, 301):
        part = num_frames / 16
        both = sorted([int(part / 2 + part * x) for x in range(16)] + [int(part * x) for x in range(16)])
        assert [VIDEOMAE_SSV2.test(num_frames, 12, clip, 2) for clip in range(2)] == [both[::2], both[1::2]]
    assert interleaved_indices(64, 16) == list(range(2, 64, 4))  # a single clip is the middle of each part
    assert [interleaved_indices(48, 4, clip=clip, num_clips=3)[0] for clip in range(3)] == [0, 4, 8]


def test_random_interleaved_frames_stay_in_their_part() -> None:
    rng = random.Random(0)
    drawn = [VIDEOMAE_SSV2.train(35, 12, rng) for _ in range(200)]  # parts of 2 frames; the last 3 are never drawn
    assert all({indices[part] for indices in drawn} == {2 * part, 2 * part + 1} for part in range(16))
    assert VIDEOMAE_SSV2.train(8, 12, rng) == VIDEOMAE_SSV2.test(8, 12) == [x // 2 for x in range(16)]
    assert VIDEOMAE_SSV2.is_short(15, 12) and not VIDEOMAE_SSV2.is_short(16, 12)


def test_segments_of_a_clip_are_windows_of_equal_parts() -> None:
    first, second = (VJEPA2.test(200, 30)[part : part + 16] for part in (0, 16))  # parts of 100, windows of 64
    assert first[0] == 18 and first[-1] == 18 + 63  # centred
    assert [index - 100 for index in second] == first
    starts = {tuple(VJEPA2.train(200, 30, random.Random(seed))[part] for part in (0, 16)) for seed in range(900)}
    assert {first for first, _ in starts} == set(range(36)) and {second for _, second in starts} == set(range(100, 136))
    assert len(starts) > 36  # drawn independently
    spread = [VJEPA2.test(200, 30, clip, 3)[0] for clip in range(3)]
    assert spread == [6, 18, 30]  # 36 places: their sixth, middle and last sixth


def test_segments_overlap_where_parts_are_shorter_than_a_window() -> None:
    clip = VJEPA2.test(100, 30)  # windows of 64 frames begin at 0 and 36
    assert [index + 36 for index in clip[:16]] == clip[16:] and clip[:3] == [0, 4, 9] and clip[15] == 62
    assert clip == VJEPA2.train(100, 30, random.Random(0))
    assert VJEPA2.test(20, 30)[:16] == VJEPA2.test(20, 30)[16:] == [0, 6, 12, *[18] * 13]
    assert VJEPA2.is_short(60, 30) and not VJEPA2.is_short(61, 30)


@pytest.mark.parametrize("sampler", [VIDEOMAE, VIDEOMAE_SSV2, VJEPA2])
def test_indices_of_every_protocol_rise_within_each_window_and_exist(sampler: ClipSampler) -> None:
    frames = sampler.num_frames // sampler.num_segments
    for num_frames in (1, 2, 5, 63, 64, 65, 127, 128, 129, 400):
        clips = [sampler.test(num_frames, 30, clip, 2) for clip in range(2)]
        for indices in [*clips, sampler.train(num_frames, 30, random.Random(num_frames))]:
            assert len(indices) == sampler.num_frames and 0 <= min(indices) <= max(indices) < num_frames
            windows = [indices[start : start + frames] for start in range(0, sampler.num_frames, frames)]
            assert all(window == sorted(window) for window in windows)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: VIDEOMAE.test(0, 30), "a video of 0 frames"),
        (lambda: VIDEOMAE.test(9, 30, 5, 5), "clip 5 of 5"),
        (lambda: VIDEOMAE_SSV2.test(9, 30, 2, 2), "clip 2 of 2"),
        (lambda: window_indices(0, num_frames=4, step=1, draw=lambda n: 0), "a video of 0 frames"),
        (lambda: ClipSampler("dense", 8, num_segments=2), "num_segments 2, expected 1"),
        (lambda: ClipSampler("by_index", 9, num_segments=2), "a divisor of num_frames 9"),
        (lambda: K400.test(0, 30), "a video of 0 frames"),
        (lambda: SSV2.train(0, 30, random.Random(0)), "a video of 0 frames"),
        (lambda: segment_indices(0, 8), "a video of 0 frames"),
        (lambda: segment_indices(8, 0), "0 segments"),
        (lambda: K400.test(300, 0), "fps 0"),
        (lambda: K400.test(300, math.nan), "fps nan"),
        (lambda: K400.test(300, 30, 5, 5), "clip 5 of 5, expected 0 to 4"),
        (lambda: SSV2.test(300, 30, -1, 5), "clip -1 of 5"),
        (lambda: ClipSampler("middle", 8), "kind 'middle'"),
        (lambda: ClipSampler("dense", 0), "num_frames 0"),
        (lambda: ClipSampler("dense", 8, 8, 0.0), "target_fps 0.0"),
    ],
)
def test_impossible_requests_are_refused_by_value(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
