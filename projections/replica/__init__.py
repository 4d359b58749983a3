"""One node's copy of the state: it appends proposals, folds the log, and answers with what the fold made of them."""
