"""Train two language models together on OpenRLHF: a solver that revises its answers and a model that guides it.

Importing the package switches on the platform layer, so that every process that sees one of our classes (driver, Ray
worker, vLLM engine) is ready for OpenRLHF; on CUDA machines that changes nothing.
"""

from score_openrlhf.platform import activate

__version__ = "0.1.0"

activate()
