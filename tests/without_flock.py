"""python without_flock.py ERRNO COMMAND ...: a command for which flock fails, as on some network mounts.

The kernel refuses the system call (a seccomp filter), to the command and to all that it starts.
"""

import ctypes
import os
import platform
import struct
import sys

FLOCK = {"x86_64": 73, "aarch64": 32}[platform.machine()]  # the number of the system call
NO_NEW_PRIVILEGES, SET_SECCOMP, FILTER = 38, 22, 2  # of prctl
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06  # of the filter's language
ALLOW, REFUSE = 0x7FFF0000, 0x00050000


def main() -> None:
    number = int(sys.argv[1])
    steps = [(LOAD, 0, 0, 0), (EQUAL, 0, 1, FLOCK), (RETURN, 0, 0, REFUSE | number), (RETURN, 0, 0, ALLOW)]
    program = b"".join(struct.pack("HBBI", *step) for step in steps)
    held = ctypes.create_string_buffer(program)
    description = struct.pack("HxxxxxxP", len(steps), ctypes.addressof(held))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0) == 0
    assert libc.prctl(SET_SECCOMP, FILTER, description) == 0, os.strerror(ctypes.get_errno())
    os.execv(sys.executable, [sys.executable, *sys.argv[2:]])


if __name__ == "__main__":
    main()
