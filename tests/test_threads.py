from threadpoolctl import threadpool_info

from sslcourse.devices import one_thread


def threads():
    return [pool["num_threads"] for pool in threadpool_info()]


def test_one_thread_holds_inside_and_is_put_back():
    before = threads()
    assert before, "numpy and torch bring at least one pool"
    with one_thread():
        assert set(threads()) == {1}
    assert threads() == before
