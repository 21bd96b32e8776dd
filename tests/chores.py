"""Work for the processes of ``muscjax.datasets.workers``; what is loaded there is not due to this module."""

import os
import sys
import time


def square(number):
    print("among the answers", flush=True)
    return number * number


def refuse_odd(number):
    from muscjax.errors import InputError

    if number % 2:
        raise InputError(f"{number}: odd")
    return number


def fail(number):
    return 1 // (number - number)


def leave_at_three(number):
    if number == 3:
        os._exit(9)
    return os.getpid()


def note_pid(place):
    """A file with this process's number appears at once; then it works on for ten minutes."""
    folder, index = place
    with open(os.path.join(folder, f"{index}.new"), "w") as file:
        file.write(str(os.getpid()))
    os.replace(file.name, os.path.join(folder, f"{index}.pid"))
    if index == 0:
        return index
    time.sleep(600)
    return index


def short(place):
    note_pid((place[0], 0))
    time.sleep(0.3)


def surroundings(task):
    """What is loaded after a scan was made, and the thread limits."""
    from muscjax.datasets import making

    made = making.make(task)
    threads = {name: value for name, value in os.environ.items() if name.endswith("NUM_THREADS")}
    return sorted(sys.modules), threads, made.entry.place
