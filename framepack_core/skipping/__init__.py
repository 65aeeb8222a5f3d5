"""Step skipping: on some steps the blocks do not run, and what they added last time is added again.

Three methods (MagCache, TeaCache, first-block cache) decide when; `run.py` does the rest and is the same for all.
"""
