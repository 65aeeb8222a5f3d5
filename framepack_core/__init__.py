"""The ideas of FramePack, free of any host.

Reading order: constants, section_plan, history, packing, schedule, unipc, generate, decoding; then
model/config, model/rope, model/embedders, model/blocks, model/transformer. Only comfy_host imports ComfyUI.
"""
