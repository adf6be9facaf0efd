"""The comparison of sinktrain with its peers; scripts/bench_peers.sh says how to run it."""
