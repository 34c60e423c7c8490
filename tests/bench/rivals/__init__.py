"""Other schedulers, from their papers and sources, for the simulator. All plan for the same memory as ours does.

| module | whose | places | routes |
|---|---|---|---|
| `exo` | exo 1.x | one ring of the fewest nodes that hold the model, layers by memory | that ring |
| `parallax_release` | Gradient's Parallax as released | disjoint chains over the whole pool | round robin |
| `parallax_paper` | the same as its paper has it | chains inside regions, the rest where layers lack | load-aware DP |
| `petals` | Petals 2.3 | each server on the blocks served worst, with rebalancing | Dijkstra, ends at the client |
| `helix` | Helix | the largest max-flow, by its mixed-integer program | by the flow's weights |
"""
