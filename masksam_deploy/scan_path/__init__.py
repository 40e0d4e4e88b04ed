"""The walk of one scan: prepare it, run the network window by window, sum, decide, bring the labels back."""
