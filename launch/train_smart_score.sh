#!/usr/bin/env bash
""":"
# launch/train_smart_score.sh [CONFIG] [key=value ...]
# bash and srun run these lines. The deepspeed launcher runs the file with Python, to which they are a string; Python then
# hands the file to bash, and bash takes the Python lines for a text that nobody reads.
exec bash "$(dirname "${BASH_SOURCE[0]}")/start.sh" configs/smart_score_math.yaml "$@"
: <<'PYTHON'
":"""
import os, sys
os.execvp("bash", ["bash", __file__, *sys.argv[1:]])
PYTHON
