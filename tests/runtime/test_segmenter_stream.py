"""``Segmenter.stream``: batches that form by themselves, order, errors, and an end without a thread left."""

import itertools
import threading
import time
from contextlib import closing

import numpy as np
import pytest

from esnet import Segmenter
from runtime.artefact.card import BatchRange
from runtime.errors import InvalidInput
from runtime.media.sources import Frame, FrameSource, open_source


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = set(threading.enumerate())
    yield
    left = set(threading.enumerate()) - before
    assert [t for t in left if not t.name.startswith("ThreadPool")] == []


@pytest.fixture(scope="module")
def segmenter(make_artefact):
    with Segmenter.open(make_artefact(), backend="onnxruntime") as opened:
        yield opened


@pytest.fixture
def null(make_artefact):
    """A segmenter that computes nothing, and the sizes of the batches that it got."""
    with Segmenter.open(make_artefact(batch=BatchRange(1, 4, 8)), backend="null") as opened:
        submit, sizes = opened.backend.submit, []

        def noted(slot):
            sizes.append(slot.num_frames)
            return submit(slot)

        opened.backend.submit = noted
        yield opened, sizes


def noise(height=64, width=128, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("batch", [1, 3, "auto"])
def test_results_are_those_of_segment_in_order(segmenter, batch):
    frames = [noise(50 + index, 130 - 2 * index, seed=index) for index in range(13)]
    results = list(segmenter.stream(iter(frames), batch=batch))
    assert [result.index for result in results] == list(range(13))
    for result, frame in zip(results, frames, strict=True):
        assert result.frame is frame
        np.testing.assert_array_equal(result.labels, segmenter.segment(frame))
        assert result.confidence is None


def test_confidence_comes_with_the_labels(make_artefact):
    path = make_artefact(outputs=("labels", "confidence"))
    with Segmenter.open(path, backend="onnxruntime") as segmenter:
        (result,) = segmenter.stream([noise(50, 70)])
        labels, confidence = segmenter.segment_with_confidence(noise(50, 70))
    np.testing.assert_array_equal(result.labels, labels)
    np.testing.assert_array_equal(result.confidence, confidence)


@pytest.mark.parametrize("opens", [str, open_source])
def test_a_video_gives_its_names_and_timestamps(null, draw_video, opens):
    path = draw_video("in.mp4", num_frames=7)
    results = list(null[0].stream(opens(path)))
    assert [result.name for result in results] == [f"in_{index:06d}" for index in range(7)]
    gaps = np.diff([result.timestamp for result in results])
    np.testing.assert_allclose(gaps, gaps[0])
    assert gaps[0] > 0


def test_a_source_is_given_in_the_segmenters_channel_order(segmenter, draw_image):
    path = draw_image("in.png")
    (rgb,) = segmenter.stream(path)
    (bgr,) = Segmenter(segmenter.backend, color="bgr").stream(path)
    np.testing.assert_array_equal(bgr.frame, rgb.frame[..., ::-1])
    np.testing.assert_array_equal(bgr.labels, rgb.labels)


def test_batches_are_full_when_frames_are_ready(null):
    segmenter, sizes = null
    segmenter.backend.num_slots = 1  # the stream waits for its slots, so that frames queue up
    frames = [noise()] * 40
    for _ in segmenter.stream(frames, batch=4):
        time.sleep(0.002)
    assert sum(sizes) == 40
    assert set(sizes) <= {1, 2, 4}
    assert sizes.count(4) >= 6


def test_no_frame_waits_for_a_later_one(null):
    segmenter, sizes = null
    gate = threading.Event()

    def camera():
        yield noise()
        assert gate.wait(10), "the first result did not come"
        yield noise()

    with closing(segmenter.stream(camera(), batch=4)) as results:
        next(results)
        gate.set()
        next(results)
    assert sizes == [1, 1]


def test_frames_may_wait_to_share_a_batch(null):
    segmenter, sizes = null

    def camera():
        for _ in range(8):
            yield noise()
            time.sleep(0.002)

    assert len(list(segmenter.stream(camera(), batch=4, max_wait_ms=5000))) == 8
    assert sizes == [4, 4]


def test_the_padding_of_a_fixed_batch_is_left_out(make_artefact):
    with Segmenter.open(make_artefact(batch=BatchRange(4, 4, 4)), backend="null") as segmenter:
        assert len(list(segmenter.stream([noise()] * 6))) == 6


@pytest.mark.parametrize("batch", [0, 9])
def test_a_batch_outside_the_range_is_refused_before_a_frame_is_read(null, batch):
    with pytest.raises(InvalidInput, match=f"batch of {batch} frames"):
        null[0].stream(iter([]), batch=batch)


@pytest.mark.parametrize("batch", [1, 4])
def test_a_frame_that_is_none_ends_the_stream_after_those_before_it(null, batch):
    frames = [*[noise()] * 6, np.zeros((4, 4)), noise()]
    seen = []
    with pytest.raises(InvalidInput, match="frame must be uint8"):
        seen.extend(null[0].stream(frames, batch=batch))
    assert len(seen) == 6


@pytest.mark.parametrize("batch", [1, 4])
def test_an_error_of_the_source_comes_after_the_frames_before_it(null, batch):
    def camera():
        yield from [noise()] * 6
        raise OSError("unplugged")

    seen = []
    with pytest.raises(OSError, match="unplugged"):
        seen.extend(null[0].stream(camera(), batch=batch))
    assert len(seen) == 6


def test_a_source_that_waits_does_not_hold_up_an_early_end(null):
    gate = threading.Event()

    def camera():
        yield noise()
        gate.wait(1)
        yield noise()

    results = null[0].stream(camera())
    next(results)
    started = time.perf_counter()
    threading.Timer(0.2, gate.set).start()
    results.close()
    assert time.perf_counter() - started < 0.9


def test_a_live_source_is_not_read_ahead(null):
    read = []

    def decode(_):
        for index in range(5):
            read.append(index)
            yield Frame(noise(), f"cam_{index}", float(index))

    results = null[0].stream(FrameSource("cam", decode, is_live=True))
    for index in range(5):
        assert next(results).name == f"cam_{index}"
        assert read[-1] == index
    assert next(results, None) is None


@pytest.mark.parametrize("is_live", [False, True])
def test_close_stops_a_source_that_waits(null, is_live):
    def decode(source):
        yield Frame(noise(), "first")
        source.stopping.wait(20)

    results = null[0].stream(FrameSource("pipe", decode, is_live=is_live))
    next(results)
    started = time.perf_counter()
    results.close()
    assert time.perf_counter() - started < 2


def test_two_streams_and_single_frames_share_a_segmenter(segmenter):
    expected = [segmenter.segment(noise(seed=seed)) for seed in range(20)]
    wrong = []

    def work():
        stream = segmenter.stream(noise(seed=seed) for seed in range(20))
        for result in stream:
            if not np.array_equal(result.labels, expected[result.index]):
                wrong.append(result.index)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for index in itertools.islice(itertools.cycle(range(20)), 30):
        if not np.array_equal(segmenter.segment(noise(seed=index)), expected[index]):
            wrong.append(index)
    for thread in threads:
        thread.join()
    assert wrong == []
