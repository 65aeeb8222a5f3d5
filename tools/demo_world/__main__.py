"""`python3 -m tools.demo_world sheet.png`, from the pack's folder."""

from .preview import main

main()
