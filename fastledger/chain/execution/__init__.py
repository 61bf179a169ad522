"""From admitted transactions to blocks and state: the executor, the stack of states, replay, the rules in force."""
