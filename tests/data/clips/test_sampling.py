import math
import random
from typing import Any

import pytest

from videoattn.data.clips.sampling import ClipSampler, dense_indices, dense_test_start, segment_indices, window_length

K400 = ClipSampler("dense", num_frames=8, sampling_rate=32, target_fps=30)
MVIT = ClipSampler("dense", num_frames=16, sampling_rate=4, target_fps=30, use_offset=True)
SSV2 = ClipSampler("segments", num_frames=8)


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


@pytest.mark.parametrize(
    ("call", "message"),
    [
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
