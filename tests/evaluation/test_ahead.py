"""What a model is asked while tasks are built: in parts, by a thread on a GPU, and as if it had waited."""

from __future__ import annotations

import threading
from threading import Event, current_thread, main_thread
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from lm_eval.api.task import ConfigurableTask
from tiny import tiny_model

from workbench.evaluation import in_memory, launching, prefixes, sharing
from workbench.evaluation.evaluate import evaluate
from workbench.evaluation.launching import Launcher

#: two tasks of choices, one that generates, and one of texts; each has 13 items
MIXED = ["toy_choice", "toy_sums", "toy_choice_again", "toy_texts"]
CHOICES = ["toy_choice", "toy_choice_again"]


@pytest.fixture(params=["at once", "by a thread"])
def way(request, monkeypatch):
    """Passes are made as on a CPU, or by a thread as on a GPU."""
    if request.param == "by a thread":
        monkeypatch.setattr(launching, "worth_a_thread", lambda device: True)
    return request.param


@pytest.fixture
def in_thread(monkeypatch):
    monkeypatch.setattr(launching, "worth_a_thread", lambda device: True)


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(sharing, "_FIRST", 2)
    monkeypatch.setattr(sharing, "_MOST", 4)


@pytest.fixture
def watched(monkeypatch):
    """What is built and asked, in order: (task, item), and ("model", its thread)."""
    done: list[tuple[str, object]] = []
    construct = ConfigurableTask.construct_requests

    def noted(task, *args, metadata, **more):
        done.append((task.config.task, metadata[1]))
        return construct(task, *args, metadata=metadata, **more)

    monkeypatch.setattr(ConfigurableTask, "construct_requests", noted)
    model = ready_model()
    model.register_forward_pre_hook(lambda *_: done.append(("model", current_thread())))
    return model, done


def ready_model():
    """Return a model that is known to share rows, so that nothing but what is asked runs it."""
    model = tiny_model()
    assert prefixes.can_share(model)
    return model


def launchers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("launching")]


def test_answers_begun_early_are_those_of_a_model_that_waited(
    way, tokenizer, folder, tmp_path, monkeypatch, watched
):
    model, done = watched
    found = {}
    for first in (10**9, 13, 2):
        monkeypatch.setattr(sharing, "_FIRST", first)
        monkeypatch.setattr(sharing, "_MOST", first)
        done.clear()
        path = tmp_path / f"{first}.jsonl"
        settings = {"include": folder, "items": path, "progress": False, "batch_size": 4}
        found[first] = evaluate(model, tokenizer, MIXED, **settings), path.read_bytes()
        if way == "at once":  # a thread may come later
            before = done[: [name for name, _ in done].index("model")]
            assert len(before) == {10**9: 4 * 13 - 13, 13: 13, 2: 2}[first]  # texts are built last
    for first in (13, 2):
        pd.testing.assert_frame_equal(found[first][0], found[10**9][0], rtol=1e-5)
        assert found[first][1] == found[10**9][1]
    assert not launchers()


def test_a_thread_launches_while_the_next_items_are_built(
    in_thread, small_parts, tokenizer, folder, monkeypatch, watched
):
    """The first pass waits until a later item of the same task is built, which would never come at once."""
    model, done = watched
    later = Event()
    construct = ConfigurableTask.construct_requests

    def told(task, *args, metadata, **more):
        if metadata[1] == 3:
            later.set()
        return construct(task, *args, metadata=metadata, **more)

    monkeypatch.setattr(ConfigurableTask, "construct_requests", told)
    waited = []
    model.register_forward_pre_hook(lambda *_: waited.append(later.wait(60)))
    evaluate(model, tokenizer, "toy_choice", include=folder, progress=False)
    threads = {thread for name, thread in done if name == "model"}
    assert all(waited) and len(threads) == 1 and main_thread() not in threads
    assert not launchers()


def test_on_a_cpu_there_is_no_thread(small_parts, tokenizer, folder, watched):
    model, done = watched
    evaluate(model, tokenizer, "toy_choice", include=folder, progress=False)
    assert {thread for name, thread in done if name == "model"} == {main_thread()}


@pytest.mark.parametrize("kind", ["ordinary", "its own"])
def test_parts_grow_end_inside_large_tasks_and_hold_every_request_once(kind, monkeypatch):
    monkeypatch.setattr(sharing, "_FIRST", 10)
    monkeypatch.setattr(sharing, "_MOST", 30)
    parts, names = [], ["loglikelihood"] * 4 + ["generate_until"] + ["multiple_choice"] * 5
    sizes = [6, 6, 100, 6, 50, 6, 6, 6, 6, 6]
    launcher = SimpleNamespace(let_launch=lambda: None)
    lm = SimpleNamespace(ask_ahead=parts.append, launcher=launcher, rank=0, world_size=1)
    ahead, tasks = sharing.Ahead(lm), []
    for number, (name, n) in enumerate(zip(names, sizes, strict=True)):

        def build(*, limit, task, number=number, n=n):
            item = lambda k: SimpleNamespace(request_type="loglikelihood", item=(number, k))  # noqa: E731
            make = task.construct_requests
            made = [make(metadata=(number, k, 1)) if kind == "ordinary" else [item(k)] for k in range(n)]
            task.instances = [one for some in made for one in some]

        def construct(*, metadata, number=number):
            return [SimpleNamespace(request_type="loglikelihood", item=(number, metadata[1]))]

        task = SimpleNamespace(eval_docs=[0] * n, OUTPUT_TYPE=name, instances=[])
        task.build_all_requests, task.construct_requests = build, construct
        ahead.follow(task)
        tasks.append(task)
    for task in tasks:
        task.build_all_requests(limit=None, task=task)
    asked = [one.item for part in parts for one in part]
    assert asked == [(t, k) for t, n in enumerate(sizes) for k in range(n) if t != 4]
    if kind == "ordinary":
        # two tasks, then 20 and 30 items of the large one, its rest, and what is left at the end
        assert [len(part) for part in parts] == [12, 20, 30, 50, 30, 6]


@pytest.mark.parametrize("where", ["model", "build"])
def test_after_an_interrupt_nothing_is_launched_any_more(
    where, way, small_parts, tokenizer, folder, monkeypatch
):
    model, passes = ready_model(), []
    going = Event()

    def seen(*_):
        passes.append(current_thread())
        going.set()
        if where == "model":
            raise KeyboardInterrupt

    model.register_forward_pre_hook(seen)
    construct = ConfigurableTask.construct_requests

    def stop(task, *args, metadata, **more):
        if where == "build" and metadata[1] == 7:
            assert going.wait(60)
            raise KeyboardInterrupt
        return construct(task, *args, metadata=metadata, **more)

    with monkeypatch.context() as interrupted:
        interrupted.setattr(ConfigurableTask, "construct_requests", stop)
        with pytest.raises(KeyboardInterrupt):
            evaluate(model, tokenizer, CHOICES, include=folder, progress=False, batch_size=1)
    assert not launchers()
    n = len(passes)
    assert n < 2 * 13
    model._forward_pre_hooks.clear()
    again = evaluate(model, tokenizer, CHOICES, include=folder, progress=False, batch_size=1)
    fresh = evaluate(tiny_model(), tokenizer, CHOICES, include=folder, progress=False, batch_size=1)
    pd.testing.assert_frame_equal(again, fresh)
    assert len(passes) == n


def test_an_error_of_a_pass_is_raised_as_it_is_and_one_of_the_build_is_not_replaced(
    way, small_parts, tokenizer, folder, monkeypatch
):
    model, going = ready_model(), Event()

    def fail(*_):
        going.set()
        raise ArithmeticError("no pass")

    handle = model.register_forward_pre_hook(fail)
    with pytest.raises(ArithmeticError, match="no pass"):
        evaluate(model, tokenizer, CHOICES, include=folder, progress=False)
    handle.remove()
    model.register_forward_pre_hook(lambda *_: going.set())
    construct = ConfigurableTask.construct_requests

    def wrong(task, *args, metadata, **more):
        if metadata[1] == 7:
            assert going.wait(60)
            raise LookupError("not built")
        return construct(task, *args, metadata=metadata, **more)

    monkeypatch.setattr(ConfigurableTask, "construct_requests", wrong)
    with pytest.raises(LookupError, match="not built"):
        evaluate(model, tokenizer, CHOICES, include=folder, progress=False)
    assert not launchers()


def test_logits_that_are_no_numbers_are_an_error_in_a_thread_too(way, small_parts, tokenizer, folder):
    model = tiny_model()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        evaluate(model, tokenizer, CHOICES, include=folder, progress=False)
    assert not launchers()


def test_too_little_memory_halves_the_batch_in_a_thread_too(way, small_parts, tokenizer, folder):
    wanted = evaluate(tiny_model(), tokenizer, CHOICES, include=folder, progress=False)
    model = tiny_model()

    def crowded(module, args):
        if len(args[0]) > 1:
            raise torch.OutOfMemoryError("too much")

    model.get_input_embeddings().register_forward_pre_hook(crowded)
    with pytest.warns(UserWarning, match="do not fit into memory; now 1"):
        found = evaluate(model, tokenizer, CHOICES, include=folder, progress=False)
    pd.testing.assert_frame_equal(found, wanted, rtol=1e-5)


def test_the_bar_moves_in_the_thread_that_it_belongs_to(way, small_parts, tokenizer, folder, monkeypatch):
    moved = []

    class Bar(in_memory.tqdm):
        def update(self, n=1):
            moved.append((current_thread(), n))
            return super().update(n)

    monkeypatch.setattr(in_memory, "tqdm", Bar)
    evaluate(tiny_model(), tokenizer, CHOICES, include=folder)
    assert {thread for thread, _ in moved} == {main_thread()}
    assert sum(n for _, n in moved) == 2 * 13 * 3


def launcher(busy=lambda: True) -> Launcher:
    return Launcher(torch.device("cpu"), busy, lambda: None)


def test_work_is_done_in_its_order_by_one_thread_without_gradients(in_thread):
    one, done = launcher(), []

    def work(number):
        done.append((number, current_thread(), torch.is_grad_enabled()))

    with one.meanwhile():
        for number in range(5):
            one.give(lambda number=number: work(number))
        one.wait()
        assert [number for number, *_ in done] == [0, 1, 2, 3, 4]
    one.give(lambda: work(5))  # outside, at once
    assert len({thread for _, thread, _ in done[:5]}) == 1 and done[5][1] is main_thread()
    assert not any(gradients for *_, gradients in done[:5])


def test_no_more_than_two_works_are_given_before_one_is_done(in_thread):
    one, go, done = launcher(), Event(), []
    with one.meanwhile():
        for number in range(2):
            one.give(lambda number=number: (go.wait(60), done.append(number)))
        assert done == []
        threading.Timer(0.05, go.set).start()
        one.give(lambda: done.append(2))
        assert 0 in done  # it has waited for the first


def test_what_is_built_waits_only_while_a_gpu_has_nothing_but_what_is_launched(in_thread):
    busy, go, waits = [True], Event(), []
    one = launcher(lambda: waits.append(1) or busy[0])
    with one.meanwhile():
        one.let_launch()
        one.give(lambda: go.wait(60))
        busy[0] = False
        one.let_launch()  # nothing waits behind what is launched: what is built is needed soon
        assert waits == []
        one.give(lambda: None)
        busy[0] = True
        one.let_launch()
        assert waits == [1]
        busy[0] = False
        threading.Timer(0.05, lambda: busy.__setitem__(0, True)).start()
        one.let_launch()
        assert len(waits) > 2 and busy[0]
        busy[0] = False
        threading.Timer(0.05, go.set).start()
        one.let_launch()  # until what was given first is done
        assert go.is_set()


def test_an_error_ends_what_was_given_behind_it(in_thread):
    one, done = launcher(), []

    def fail_first():
        with one.meanwhile():
            one.give(lambda: 1 / 0)
            one.give(lambda: done.append(1))

    with pytest.raises(ZeroDivisionError):
        fail_first()
    assert done == [] and one.stopped and not launchers()
    with one.meanwhile():  # and it can be used again
        one.give(lambda: done.append(2))
    assert done == [2]
