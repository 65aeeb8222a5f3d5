"""What scripts/train_demo.py makes the demo checkpoint of, one file a stage; the films come from tools/demo_world."""
