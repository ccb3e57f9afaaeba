"""What a run is to work with in; every fault found before anything is started, all at once, out."""
