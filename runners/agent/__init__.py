"""Agents as users write them: classes, decorated functions, and how they are found by name."""
