"""Takes and gives back python-etcd's lock until the time is over, and writes down when.

contender.py PORT NAME LOG SECONDS
"""
import sys
import time

import etcd

port, name, log, seconds = sys.argv[1:]
client = etcd.Client(host="127.0.0.1", port=int(port))
end = time.monotonic() + float(seconds)
rounds = 0
with open(log, "a", buffering=1) as file:
    while time.monotonic() < end:
        lock = etcd.Lock(client, name)
        lock.acquire(blocking=True, lock_ttl=30)
        token = int(lock._sequence)
        file.write(f"begin {token} python\n")
        time.sleep(0.002)
        file.write(f"end {token} python\n")
        lock.release()
        rounds += 1
print(rounds)
