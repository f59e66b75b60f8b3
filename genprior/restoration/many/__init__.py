"""Many photos: a folder restored by several processes or machines, resumed where it stopped."""
