"""WiSE-FT, fig. 5 and figs. 27 to 30: diversity of the two ends' predictions, who overrides whom, and margins.

From tables/agreement.csv (sharpscope run --agreement) and accuracy.csv, which says which sets are ID. The paper's KL
has the other end in first place, and its figures 27 to 30 compare many models with each other: here each fine-tuned
model is compared with its own zero-shot model.

python figures/paper_wiseft_diversity.py runs/demo --pairs success failure --out figures
"""

from sharpscope.study.figures.script import figure_script

main = figure_script("paper_wiseft_diversity", __doc__)

if __name__ == "__main__":
    main()
