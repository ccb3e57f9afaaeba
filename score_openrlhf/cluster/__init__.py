"""Where roles stand: placement, reservation, engines that outlive a run."""
