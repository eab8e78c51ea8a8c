"""From files to items, passages, splits and training examples. Pure functions over `flows.records`; calls no service."""
