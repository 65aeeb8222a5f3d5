"""What scripts/train_demo.py makes the demo checkpoint of, one stage a part; the films come from tools/demo_world."""
