"""Faults while files are written: full disks, failed operations, and processes that are killed.

`python -m tests.faults` tries every operation of every command; test_faults.py tries some of them.
"""
