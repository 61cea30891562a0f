"""A compile that logs to a real board: python board_child.py wandb|trackio."""

import importlib
import json
import sys

board = importlib.import_module(sys.argv[1])
board.init(project="tfgrpo-test")

from test_boards import BoardListener, compiled  # noqa: E402

results = compiled(BoardListener(board))
board.finish()
sys.stdout.write(json.dumps({"failures": dict(results.failures)}) + "\n")
