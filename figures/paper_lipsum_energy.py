"""Lipsum-FT's analysis: accuracy against the energy gap and the feature distortion between a model and zero-shot.

From tables/agreement.csv (sharpscope run --agreement) and accuracy.csv. The paper's regulariser is half of this gap.

python figures/paper_lipsum_energy.py runs/demo --out figures
"""

from sharpscope.study.figures.script import figure_script

main = figure_script("paper_lipsum_energy", __doc__)

if __name__ == "__main__":
    main()
