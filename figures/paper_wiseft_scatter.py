"""WiSE-FT, figs. 1, 7 and 8: OOD over ID accuracy along the path of every pair, with the line of effective robustness.

From tables/accuracy.csv. The paper's grey points are 204 models of Taori et al. 2020: --baseline takes them as a CSV
file (dataset, id_accuracy, ood_accuracy), or the runs' own models by name. Its axes are logit; probit is a choice.

python figures/paper_wiseft_scatter.py runs/demo --baseline models.csv --scale logit --out figures
"""

from sharpscope.study.figures.script import figure_script

main = figure_script("paper_wiseft_scatter", __doc__)

if __name__ == "__main__":
    main()
