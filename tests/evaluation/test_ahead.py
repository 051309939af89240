"""What a model is asked while tasks are built: in parts, by a thread on a GPU, and as if it had waited."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from threading import Event, current_thread, main_thread
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from lm_eval.api.task import ConfigurableTask
from tiny import tiny_model

from workbench.evaluation import answers, asking, harness, launching, prefixes, sharing
from workbench.evaluation.evaluate import evaluate, prepared
from workbench.evaluation.in_memory import InMemory
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
@pytest.mark.parametrize("rank", [0, 1])
def test_parts_grow_end_inside_large_tasks_and_hold_every_request_once(kind, rank, monkeypatch):
    """A process of two that builds all items, as where functions make them, asks every second one."""
    monkeypatch.setattr(sharing, "builds_item_by_item", lambda task: kind == "ordinary")
    monkeypatch.setattr(sharing, "_FIRST", 10)
    monkeypatch.setattr(sharing, "_MOST", 30)
    parts, names = [], ["loglikelihood"] * 4 + ["generate_until"] + ["multiple_choice"] * 5
    sizes = [6, 6, 100, 6, 50, 6, 6, 6, 6, 6]
    launcher = SimpleNamespace(let_launch=lambda: None)
    lm = SimpleNamespace(ask_ahead=parts.append, launcher=launcher, rank=rank, world_size=2)
    ahead, tasks = sharing.Ahead(lm), []
    for number, (name, n) in enumerate(zip(names, sizes, strict=True)):

        def build(*, limit, task, number=number):
            item = lambda k: SimpleNamespace(request_type="loglikelihood", item=(number, k))  # noqa: E731
            make = task.construct_requests
            made = [make(metadata=(number, k, 1)) if kind == "ordinary" else [item(k)] for k in range(limit)]
            task.instances = [one for some in made[rank::2] for one in some]

        def construct(*, metadata, number=number):
            return [SimpleNamespace(request_type="loglikelihood", item=(number, metadata[1]))]

        task = SimpleNamespace(eval_docs=[0] * 2 * n, OUTPUT_TYPE=name, instances=[])
        task.build_all_requests, task.construct_requests = build, construct
        ahead.follow(task)
        tasks.append(task)
    for task in tasks:
        task.build_all_requests(limit=len(task.eval_docs) // 2, task=task)
    asked = [one.item for part in parts for one in part]
    assert asked == [(t, k) for t, n in enumerate(sizes) for k in range(rank, n, 2) if t != 4]
    if kind == "ordinary":
        # two tasks, then 20 and 30 items of the large one, its rest, and what is left at the end
        assert [2 * len(part) for part in parts] == [12, 20, 30, 50, 30, 6]


@pytest.mark.parametrize("where", ["model", "build"])
def test_after_an_interrupt_nothing_is_launched_any_more(
    where, way, small_parts, tokenizer, folder, monkeypatch
):
    model, passes, launchers_made = ready_model(), [], []
    going = Event()

    class Made(Launcher):
        def __init__(self, *args):
            super().__init__(*args)
            launchers_made.append(self)

    def seen(*_):
        passes.append(current_thread())
        going.set()
        for _ in range(1000 * (current_thread() is not main_thread() and where == "build")):
            if launchers_made[-1].stopped:  # the interrupt has come while a pass is at work
                break
            time.sleep(0.01)
        if where == "model":
            raise KeyboardInterrupt

    model.register_forward_pre_hook(seen)
    construct = ConfigurableTask.construct_requests

    def stop(task, *args, metadata, **more):
        if where == "build" and metadata[1] == 3:
            assert going.wait(60)
            raise KeyboardInterrupt
        return construct(task, *args, metadata=metadata, **more)

    with monkeypatch.context() as interrupted:
        interrupted.setattr(ConfigurableTask, "construct_requests", stop)
        interrupted.setattr(asking, "Launcher", Made)
        with pytest.raises(KeyboardInterrupt):
            evaluate(model, tokenizer, CHOICES, include=folder, progress=False, batch_size=1)
    assert not launchers()
    n = len(passes)
    if way == "by a thread" or where == "model":
        assert n == 1
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

    class Bar(asking.tqdm):
        def update(self, n=1):
            moved.append((current_thread(), n))
            return super().update(n)

    class Quick(ThreadPoolExecutor):
        def submit(self, *args):
            future = super().submit(*args)
            wait([future])  # done before the one who gave it goes on
            return future

    monkeypatch.setattr(asking, "tqdm", Bar)
    monkeypatch.setattr(launching, "ThreadPoolExecutor", Quick)
    for tasks, n in ((MIXED, 2 * 13 * 3 + 13 + 13), (["toy_sums"], 13)):
        moved.clear()
        evaluate(tiny_model(), tokenizer, tasks, include=folder, batch_size=4)
        assert {thread for thread, _ in moved} == {main_thread()}
        assert sum(n for _, n in moved) == n
    assert max(n for _, n in moved) == 1  # answer by answer while they are generated


def test_only_one_thread_runs_the_model_at_a_time(in_thread, small_parts, tokenizer, folder):
    """Choices are launched by the thread; what is generated, and what is tried once, by the main one."""
    model, inside, both = tiny_model(), [], []

    def enter(*_):
        both.append(len(inside))
        inside.append(current_thread())
        time.sleep(0.002)

    model.register_forward_pre_hook(enter)
    model.register_forward_hook(lambda *_: inside.pop() and None)
    evaluate(model, tokenizer, ["toy_sums", *CHOICES], include=folder, progress=False, batch_size=1)
    assert set(both) == {0} and inside == []
    lm, done = InMemory(model, tokenizer, batch_size=1), []
    with lm.asked_ahead():
        lm.launcher.give(lambda: (time.sleep(0.05), done.append("launched")))
        assert lm.can_share and done == ["launched"]


class Late:
    """What says when a copy to the CPU is there; only then are the values, as on a GPU."""

    waited: list[int] = []  # noqa: RUF012

    def __init__(self, values):
        self.kept, self.values = values.clone(), values
        values.fill_(torch.nan)

    def query(self):
        return True

    def synchronize(self):
        self.values.copy_(self.kept)
        self.waited.append(1)


def test_results_that_come_late_are_waited_for_and_few_are_left_waiting(
    in_thread, small_parts, tokenizer, folder, monkeypatch
):
    wanted = evaluate(tiny_model(), tokenizer, CHOICES, include=folder, progress=False, batch_size=1)
    copy, left = answers._copy_begun, []

    def late(values):
        copied, _ = copy(values)
        return copied, Late(copied)

    keep = answers.Answers.keep
    monkeypatch.setattr(answers, "_copy_begun", late)
    monkeypatch.setattr(
        answers.Answers, "keep", lambda self, done: left.append(len(self.lm.pending)) or keep(self, done)
    )
    found = evaluate(tiny_model(), tokenizer, CHOICES, include=folder, progress=False, batch_size=1)
    pd.testing.assert_frame_equal(found, wanted)
    assert len(Late.waited) == len(left) and max(left) == answers._AT_WORK


@pytest.mark.parametrize("where", ["pass", "build"])
def test_a_model_that_failed_once_is_asked_again_as_if_it_had_not(
    where, way, small_parts, tokenizer, folder, monkeypatch
):
    (part,) = prepared({None: CHOICES}, include=folder, data=None, missing="error").tasks.values()
    model = ready_model()
    lm = InMemory(model, tokenizer, batch_size=2)

    def run():
        with harness.untouched(model, tokenizer), harness.quiet():
            return harness.run_tasks(lm, part, limit=None, chat=False)[0]["results"]

    wanted, passes = run(), []

    def fail(*_):
        passes.append(1)
        if where == "pass" and len(passes) == 4:
            raise ArithmeticError("stopped")

    construct = ConfigurableTask.construct_requests

    def wrong(task, *args, metadata, **more):
        if where == "build" and task.config.task == CHOICES[1] and metadata[1] == 3:
            raise ArithmeticError("stopped")
        return construct(task, *args, metadata=metadata, **more)

    handle = model.register_forward_pre_hook(fail)
    with monkeypatch.context() as broken:
        broken.setattr(ConfigurableTask, "construct_requests", wrong)
        with pytest.raises(ArithmeticError, match="stopped"):
            run()
    handle.remove()
    assert (lm.ahead, lm.loads, len(lm.pending), lm.launched) == ([], [0.0], 0, None)
    assert len(lm.rolling([[5, 6, 7], [8, 9]])) == 2
    assert run() == wanted


def test_a_class_that_changes_its_requests_after_they_are_built_is_asked_what_it_ends_with(
    way, small_parts, tokenizer, folder
):
    class Changing(ConfigurableTask):
        def build_all_requests(self, **settings):
            super().build_all_requests(**settings)
            for one in self._instances:
                one.arguments = (one.arguments[0] + " and so", one.arguments[1])

    model, found = ready_model(), []
    for first in (10**9, 2):
        (part,) = prepared({None: ["toy_choice"]}, include=folder, data=None, missing="error").tasks.values()
        part["tasks"]["toy_choice"].__class__ = Changing
        lm = InMemory(model, tokenizer, batch_size=4)
        with pytest.MonkeyPatch.context() as patched, harness.untouched(model, tokenizer), harness.quiet():
            patched.setattr(sharing, "_FIRST", first)
            results, _ = harness.run_tasks(lm, part, limit=None, chat=False)
        samples = results["samples"]["toy_choice"]
        assert all(context.endswith(" and so") for one in samples for context, _ in one["arguments"])
        found.append([[answer[0][0] for answer in one["resps"]] for one in samples])
        pairs = [pair for one in samples for pair in one["arguments"]]
        alone = InMemory(model, tokenizer, batch_size=1)
        with torch.no_grad():
            by_hand = [
                total for total, _ in alone._loglikelihood_tokens([(None, *p) for p in alone.encoded(pairs)])
            ]
        assert [x for some in found[-1] for x in some] == pytest.approx(by_hand, rel=1e-4)


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
    busy, go, last, waits = [True], Event(), Event(), []
    one = launcher(lambda: waits.append(1) or busy[0])
    with one.meanwhile():
        one.let_launch()
        one.give(lambda: go.wait(60))
        busy[0] = False
        one.let_launch()  # nothing waits behind what is launched: what is built is needed soon
        assert waits == []
        one.give(lambda: last.wait(5))
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
        assert go.is_set() and not one.given[-1].done()
        last.set()


def test_an_error_ends_what_was_given_behind_it(in_thread):
    one, done = launcher(), []

    def fail_first():
        go = Event()
        with one.meanwhile():
            one.give(lambda: go.wait(60) and 1 / 0)
            one.give(lambda: done.append(1))
            go.set()
            wait(one.given, timeout=60)

    with pytest.raises(ZeroDivisionError):
        fail_first()
    assert done == [] and one.stopped and not launchers()
    with one.meanwhile():  # and it can be used again
        one.give(lambda: done.append(2))
    assert done == [2]
