"""The outer loop on language models: supervised fine-tuning, DPO and GRPO.

Start with `sft.sft`; `runs` has what the three share.
"""
