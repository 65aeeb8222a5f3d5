"""The parts of scripts/bench.py; each row of it runs in a process of its own."""
