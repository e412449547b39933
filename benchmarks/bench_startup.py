"""How long `hemstitch --help` takes, as a whole process, against a Python that does nothing; target: under 1 second."""

import subprocess
import sys
import time

from _common import environment, median_ratio, write_result


def timer(*command):
    """A function that runs the command and returns the seconds."""

    def run():
        begin = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - begin

    return run


def main():
    nothing = timer(sys.executable, "-c", "pass")
    result = median_ratio(nothing, timer(sys.executable, "-m", "hemstitch.cli", "--help"), 9)
    write_result("startup", {"what": "`hemstitch --help`; base: python -c pass", "target_seconds": 1.0, **result,
                             **environment()})


if __name__ == "__main__":
    main()
