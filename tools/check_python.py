"""Can this interpreter make the project's environment? One line that says what is missing, or silence.

Runs under whatever `python3` the machine has, so it keeps to syntax that old interpreters read.
"""

import sys

OLDEST = (3, 10)


def problem():
    """What is wrong with this interpreter, in one line; an empty string when nothing is."""
    if sys.version_info[:2] < OLDEST:
        return "Python %d.%d or newer is needed, this is %s: choose one with `make PYTHON=python3.12 ...`" % (
            OLDEST + (sys.version.split()[0],)
        )
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError as error:
        remedy = "install it (Debian, Ubuntu: apt install python%d.%d-venv)" % sys.version_info[:2]
        return "%s has no module %r, which makes environments: %s" % (sys.executable, error.name, remedy)
    return ""


if __name__ == "__main__":
    sys.exit(problem() or 0)
