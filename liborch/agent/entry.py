"""First lines of the agent on a node: refuse an old Python in words any Python can say, then hand over to the relay."""

import sys


def main():
    if sys.version_info < (3, 6):
        sys.stderr.write("python3 here is %d.%d; the agent needs 3.6 or newer\n" % sys.version_info[:2])
        return 64
    import os

    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    import relay

    return relay.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
