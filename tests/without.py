"""python without.py CALL ERRNO COMMAND ...: a command for which a system call fails, as on some network mounts.

The kernel refuses the system call (a seccomp filter), to the command and to all that it starts.
"""

import ctypes
import os
import platform
import struct
import sys

CALLS = {  # the numbers of the system calls
    "x86_64": {"flock": 73, "fsync": 74, "chmod": 90, "fchmod": 91},
    "aarch64": {"flock": 32, "fsync": 82, "chmod": 53, "fchmod": 52},
}[platform.machine()]
NO_NEW_PRIVILEGES, SET_SECCOMP, FILTER = 38, 22, 2  # of prctl
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06  # of the filter's language
ALLOW, REFUSE = 0x7FFF0000, 0x00050000


def main() -> None:
    call, number = CALLS[sys.argv[1]], int(sys.argv[2])
    steps = [(LOAD, 0, 0, 0), (EQUAL, 0, 1, call), (RETURN, 0, 0, REFUSE | number), (RETURN, 0, 0, ALLOW)]
    program = b"".join(struct.pack("HBBI", *step) for step in steps)
    held = ctypes.create_string_buffer(program)
    description = struct.pack("HxxxxxxP", len(steps), ctypes.addressof(held))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0) == 0
    assert libc.prctl(SET_SECCOMP, FILTER, description) == 0, os.strerror(ctypes.get_errno())
    os.execv(sys.executable, [sys.executable, *sys.argv[3:]])


if __name__ == "__main__":
    main()
