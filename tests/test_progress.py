import threading
import time

from autotune.progress import OneAtATime


def test_events_of_several_threads_reach_the_receiver_one_at_a_time():
    inside, most, kinds = [], [], []

    class Receiver:
        def event(self, kind, **data):
            inside.append(kind)
            most.append(len(inside))
            time.sleep(0.001)
            inside.remove(kind)
            kinds.append((kind, data))

    progress = OneAtATime(Receiver())
    threads = [threading.Thread(target=progress.event, args=(f"kind {n}",), kwargs={"n": n}) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1 and sorted(kinds, key=str) == sorted(((f"kind {n}", {"n": n}) for n in range(20)), key=str)


def test_a_receiver_may_send_events_itself():
    seen = []

    class Receiver:
        def event(self, kind, **data):
            seen.append(kind)
            if kind == "first":
                progress.event("second")

    progress = OneAtATime(Receiver())
    progress.event("first")
    assert seen == ["first", "second"]
