"""How many threads numerical libraries may use."""

from functools import lru_cache

from threadpoolctl import ThreadpoolController


@lru_cache(maxsize=1)
def _pools() -> ThreadpoolController:
    return ThreadpoolController()  # finding the libraries takes longer than a small fit


def one_thread():
    """While it is entered, every numerical library works on one thread.

    For small work: where cores are shared, threads wait for each other far longer than they work. With two threads, a linear probe on a
    hundred rows took 0.79 s on two busy cores, and 0.05 to 0.07 s with one.
    """
    return _pools().limit(limits=1)
