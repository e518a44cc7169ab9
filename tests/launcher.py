"""Forks scripts for support.Launcher: python launcher.py SOCKET."""

import json
import os
import signal
import socket
import sys

import numpy
import torch.utils.data

control = socket.socket(fileno=int(sys.argv[1]))
while True:
    request, descriptors, _, _ = socket.recv_fds(control, 1 << 20, 3)
    if not request:
        os._exit(0)
    pid = os.fork()
    if pid == 0:
        break
    for descriptor in descriptors:
        os.close(descriptor)
    control.send(f"{pid}\n".encode())
    _, wait_status = os.waitpid(pid, 0)
    control.send(f"{os.waitstatus_to_exitcode(wait_status)}\n".encode())

# The child: becomes the script.
# A shell without job control starts what runs in the background with SIGINT ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
control.close()
for target, descriptor in enumerate(descriptors):
    os.dup2(descriptor, target, inheritable=True)
    os.close(descriptor)
script = json.loads(request)
os.environ.clear()
os.environ.update(script["env"])
__file__ = script["path"]
sys.argv = [__file__, *script["args"]]
with open(__file__) as file:
    code = compile(file.read(), __file__, "exec")
del json, signal, socket, control, request, descriptors, pid, file, numpy, torch
exec(code)
