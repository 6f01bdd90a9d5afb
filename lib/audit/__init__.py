"""Point a detector at a model: `suspects` finds it, `examine` scans and judges it, `report` says what was found."""
