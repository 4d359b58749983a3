"""The pure fold: the state that a log stands for, the rules of its events, and the commands that propose them."""
