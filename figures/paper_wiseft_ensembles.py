"""WiSE-FT, figs. 10, 12 and 13: the straight path beside ensembles of the two models' outputs and other paths.

From tables/accuracy.csv of a run with --ensembles (variants ensemble:logits, ensemble:probabilities) or --paths
(variants path:NAME). The paper's moving averages of weights are models of their own: give them as pairs.

python figures/paper_wiseft_ensembles.py runs/demo --variants dense ensemble:logits --out figures
"""

from sharpscope.study.figures.script import figure_script

main = figure_script("paper_wiseft_ensembles", __doc__)

if __name__ == "__main__":
    main()
