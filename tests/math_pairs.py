r"""Pairs of a gold answer and an answer: writings that say the same, and attacks that must not be solved.

A line is a gold answer and answers to it, between " ;; ". An answer is put into \boxed{...}, but for those that start
with "> ", which are the whole text of a completion.
"""

# ruff: noqa: E501 - a line holds all that belongs to one gold answer

from __future__ import annotations

EQUAL = r"""
1/2 ;; 0.5 ;; \frac12 ;; \dfrac{1}{2} ;; .5 ;; \tfrac{1}{2} ;; 2/4 ;; \frac{2}{4} ;; 50\% ;; 1 / 2 ;; 0.50 ;; 2^{-1} ;; \left(\frac12\right)
18 ;; 18.0 ;; 18. ;; +18 ;; 018 ;; 18\text{ eggs} ;; 18 eggs ;; \$18 ;; 18\,\text{dollars} ;; 18.00 ;; {18} ;; (18) ;; \text{18} ;; \mathbf{18} ;; x = 18 ;; x=18 ;; 9+9 ;; 6 \cdot 3 ;; 6\times3 ;; 36/2 ;; \$18.00 ;; 18~\text{m} ;; \textbf{18}
18 ;; > The answer is \boxed{18}. ;; > so \boxed{17}? No: \boxed{18} ;; > **Answer:** $18$ ;; > #### 18 ;; > Final answer: 18 ;; > The final answer is $18$. ;; > \[\boxed{18}\] ;; > \boxed {18} ;; > \fbox{18} ;; > \boxed{\boxed{18}} ;; > The answer is **18**. ;; > <think>\boxed{3}</think> \boxed{18} ;; > \boxed{18}, that is \boxed{18}
-3 ;; −3 ;; -3.0 ;; -\frac{6}{2} ;; - 3 ;; \frac{-3}{1} ;; -\sqrt{9} ;; x=-3 ;; \frac{3}{-1} ;; -3\text{ degrees}
10,080 ;; 10080 ;; 10{,}080 ;; 10,\!080 ;; 10\,080 ;; 10080.0 ;; 1.008 \times 10^4 ;; 1.008\cdot10^{4} ;; \$10,080
1234567 ;; 1,234,567 ;; 1{,}234{,}567 ;; 1,\!234,\!567
\frac{3}{4} ;; 0.75 ;; 75\% ;; \frac34 ;; 3/4 ;; \frac{6}{8} ;; \frac 34 ;; {3}/{4} ;; 1-\frac14 ;; \dfrac34
2\frac{3}{5} ;; \frac{13}{5} ;; 13/5 ;; 2.6 ;; 2 3/5 ;; 2 \frac35 ;; 2\dfrac{3}{5} ;; 2+\frac35
-1\frac{1}{2} ;; -\frac32 ;; -1.5 ;; -3/2
3\sqrt{13} ;; 3 \sqrt{13} ;; \sqrt{117} ;; 3\sqrt{13}\text{ units} ;; 3\cdot\sqrt{13} ;; \sqrt{13}\cdot 3 ;; 3*sqrt(13) ;; \sqrt{9}\sqrt{13} ;; \frac{39}{\sqrt{13}} ;; 3(13)^{1/2}
11\sqrt2 ;; 11\sqrt{2} ;; \sqrt{242} ;; \frac{22}{\sqrt2} ;; 11 \cdot 2^{1/2} ;; 11√2
\frac{\sqrt{7}}{7} ;; \frac{1}{\sqrt{7}} ;; \frac{\sqrt7}7 ;; 7^{-1/2} ;; \sqrt{\frac17} ;; \sqrt{7}/7 ;; \frac{7}{7\sqrt7} ;; \sqrt{7}\cdot\frac17
1+\sqrt{2} ;; \sqrt{2}+1 ;; \sqrt{3+2\sqrt{2}} ;; \frac{1}{\sqrt2-1} ;; \cot\frac{\pi}{8}
\sqrt[3]{2} ;; 2^{1/3} ;; 2^{\frac{1}{3}} ;; \sqrt[3]2 ;; \sqrt[6]{4} ;; \frac{2}{\sqrt[3]{4}}
\frac{\sqrt6+\sqrt2}{4} ;; \cos\frac{\pi}{12} ;; \sin\frac{5\pi}{12} ;; \frac{\sqrt{2}(\sqrt3+1)}{4} ;; \frac{1}{\sqrt6-\sqrt2}
\frac{1+\sqrt5}{2} ;; 2\cos\frac{\pi}{5} ;; \frac{2}{\sqrt5-1} ;; \frac12+\frac{\sqrt5}{2} ;; 0.5+0.5\sqrt5
2\pi ;; \pi \cdot 2 ;; 2 \pi ;; \pi+\pi ;; 2π ;; 2pi ;; \frac{4\pi}{2} ;; 2*\pi
288 \pi ;; 288\pi ;; \pi 288 ;; 288\pi\text{ cubic inches} ;; 288 \cdot \pi
-\frac{\pi}{8} ;; -\pi/8 ;; \frac{-\pi}{8} ;; -\frac81\pi ;; \frac{\pi}{-8}
18+2\pi ;; 2\pi+18 ;; 2(\pi+9) ;; 2(9+\pi)
\frac{30000}{\pi} ;; 30000/\pi ;; 30{,}000\pi^{-1} ;; \frac{30,000}{\pi}
e^2 ;; e^{2} ;; e\cdot e ;; \exp(2) ;; \frac{1}{e^{-2}}
1-\frac1e ;; 1-e^{-1} ;; \frac{e-1}{e} ;; 1 - 1/e
\ln 8 ;; 3\ln 2 ;; \ln(8) ;; \ln 2+\ln 4 ;; -\ln\frac18
\log_2 3 ;; \frac{\ln 3}{\ln 2} ;; \log_{2}{3} ;; \log_4 9 ;; \frac{1}{\log_3 2}
90^\circ ;; 90 ;; 90^{\circ} ;; 90° ;; 90\text{ degrees} ;; 90 degrees ;; 90\degree ;; 90.0^\circ
\frac{290}7\text{ degrees} ;; \frac{290}{7} ;; \frac{290}{7}^\circ ;; 290/7 ;; 41\frac37
50 ;; 50\% ;; 50\text{ percent}
50\% ;; 50 ;; 50 percent ;; 50\text{ percent} ;; 0.5 ;; \frac12 ;; 50.0\% ;; 50 %
742 \mbox{ inches}^2 ;; 742 ;; 742\text{ square inches} ;; 742 \text{ in}^2 ;; 742 \text{ sq in} ;; 742\text{ square units}
35\mbox{ cm}^2 ;; 35 ;; 35\text{ cm}^2 ;; 35 \text{ square centimeters} ;; 35~\mathrm{cm}^2 ;; 35 cm^2
6.2 \text{ cents} ;; 6.2 ;; 6.2\text{ cents} ;; 6.2 cents ;; \frac{31}{5}
\$18.90 ;; 18.9 ;; 18.90 ;; \$18.9 ;; 18.90\text{ dollars}
6-5i ;; 6 - 5i ;; -5i+6 ;; 6+(-5)i ;; 6-5 i ;; (6-5i) ;; z=6-5i ;; \frac{1}{\frac{6+5i}{61}}
1+274i ;; 274i+1 ;; 1+274 \cdot i
i ;; \frac{1+i}{1-i} ;; i^5 ;; -i^3 ;; \sqrt{-1}
(3,4] ;; (3, 4] ;; \left(3,4\right] ;; 3<x\le4 ;; x\in(3,4] ;; 3 < x \leq 4
[-2,7] ;; [-2, 7] ;; x\in[-2,7] ;; -2\le x\le7 ;; \left[-2,7\right] ;; 7 \geq x \geq -2
(2,\infty) ;; x>2 ;; (2, +\infty) ;; 2<x ;; \left(2,\infty\right) ;; x \in (2,\infty) ;; (2,∞)
(-\infty,-7] ;; x\le-7 ;; (-\infty, -7] ;; x \leq -7 ;; -7\ge x
(0,9)\cup(9,36) ;; (9,36)\cup(0,9) ;; (0, 9) \cup (9, 36) ;; x\in(0,9)\cup(9,36)
(-\infty,2)\cup(3,\infty) ;; x<2\text{ or }x>3 ;; x < 2 or x > 3 ;; (3,\infty)\cup(-\infty,2)
(-\infty,1)\cup(1,\infty) ;; x\ne1 ;; \mathbb{R}\setminus\{1\} ;; x \neq 1
(6,31,-1) ;; (6, 31, -1) ;; \left(6,31,-1\right) ;; 6,31,-1 ;; (a,b,c)=(6,31,-1) ;; (6,31,-1.0)
(3,\frac{\pi}{2}) ;; \left(3,\frac{\pi}{2}\right) ;; (3,\pi/2) ;; (3, 0.5\pi) ;; (r,\theta)=(3,\frac\pi2)
1,-2 ;; -2,1 ;; -2, 1 ;; 1\text{ and }-2 ;; 1 and -2 ;; x=1,x=-2 ;; x=1\text{ or }x=-2 ;; \{1,-2\} ;; \{-2, 1\} ;; x = 1, -2 ;; > \boxed{1} and \boxed{-2}
3,5,7 ;; 7,5,3 ;; 3, 5, 7 ;; 3, 5,\text{ and }7 ;; \{3,5,7\} ;; 3;5;7 ;; 5, 3 and 7
1\pm\sqrt{19} ;; 1+\sqrt{19},1-\sqrt{19} ;; 1-\sqrt{19}, 1+\sqrt{19} ;; \{1\pm\sqrt{19}\} ;; 1±\sqrt{19} ;; 1\mp\sqrt{19} ;; \frac{2\pm\sqrt{76}}{2}
\{1\pm\sqrt5,-2\} ;; 1+\sqrt5,1-\sqrt5,-2 ;; \{-2,1-\sqrt5,1+\sqrt5\}
\pm 3 ;; 3,-3 ;; -3, 3 ;; \{-3,3\} ;; 3\text{ or }-3
\begin{pmatrix} 1/5 \\ -17/5 \end{pmatrix} ;; \begin{pmatrix}0.2\\-3.4\end{pmatrix} ;; \begin{bmatrix}\frac15\\-\frac{17}5\end{bmatrix} ;; \begin{pmatrix} \frac{1}{5} \\ \frac{-17}{5} \end{pmatrix}
\begin{pmatrix}-1&0\\0&-1\end{pmatrix} ;; \begin{bmatrix} -1 & 0 \\ 0 & -1 \end{bmatrix} ;; \left(\begin{matrix}-1&0\\0&-1\end{matrix}\right)
2516_8 ;; 2516_{8} ;; 2516_{\text{eight}} ;; 2516 \text{ base } 8
4210_{5} ;; 4210_5 ;; 04210_5
x=5 ;; 5 ;; x = 5 ;; 5=x ;; x=\frac{10}{2}
y=2x+3 ;; y = 2x+3 ;; y=3+2x ;; 2x+3 ;; 2x-y+3=0 ;; y-2x=3 ;; y-3=2x ;; 2y=4x+6 ;; f(x)=2x+3
5x-7y+11z+4=0 ;; -5x+7y-11z-4=0 ;; 5x-7y+11z=-4 ;; 10x-14y+22z+8=0 ;; 5x + 11z + 4 = 7y
x^2+y^2=4 ;; y^2+x^2=4 ;; x^2+y^2-4=0 ;; 4=x^2+y^2
(a+5)(b+2) ;; ab+2a+5b+10 ;; (b+2)(a+5) ;; (5+a)(2+b) ;; (a+5)\cdot(b+2) ;; a(b+2)+5(b+2)
x^3+3x-6 ;; 3x+x^3-6 ;; x^3 + 3x - 6 ;; -6+3x+x^3 ;; x(x^2+3)-6
6r^2-4r-24 ;; 2(3r^2-2r-12) ;; 6r^2-4r-24\text{} ;; -24-4r+6r^2
p-q ;; -q+p ;; p - q ;; -(q-p)
\frac{x+1}{x-1} ;; \frac{1+x}{x-1} ;; (x+1)/(x-1) ;; -\frac{x+1}{1-x} ;; 1+\frac{2}{x-1}
\cot x ;; \frac{\cos x}{\sin x} ;; \frac{1}{\tan x} ;; \cot(x)
\sin 2x ;; 2\sin x\cos x ;; \sin(2x) ;; 2 \cos x \sin x
2^{n+1} ;; 2\cdot2^n ;; 2^n\cdot 2 ;; 2^{1+n} ;; 2^n+2^n
\sqrt{x} ;; x^{1/2} ;; \sqrt x ;; x^{0.5}
\frac{13+7a}{20} ;; \frac{7a+13}{20} ;; (13+7a)/20 ;; 0.35a+0.65 ;; \frac{13}{20}+\frac{7}{20}a
2k+2 ;; 2(k+1) ;; 2 + 2k ;; 2k + 2
\text{(C)} ;; C ;; (C) ;; \text{C} ;; \textbf{(C)} ;; (\text{C}) ;; \textbf{(C)}\ 18 ;; \mathrm{C} ;; (C)~7
\text{Ottilie} ;; Ottilie ;; \text{ottilie} ;; \textbf{Ottilie} ;; \mathrm{Ottilie} ;; > The answer is Ottilie.
\text{even} ;; even ;; Even ;; \text{ even}
720 ;; 6! ;; 6\cdot5! ;; 720\text{ ways} ;; \binom{10}{3}\cdot6 ;; 3!\cdot120
120 ;; \binom{10}{3} ;; \dbinom{10}{3} ;; {10 \choose 3}
2^{99} ;; 2\cdot2^{98} ;; 4^{49}\cdot2 ;; \frac{2^{100}}{2}
10^{-5} ;; 0.00001 ;; \frac{1}{100000} ;; 1\times10^{-5} ;; 1.0e-5
.0000672 ;; 0.0000672 ;; 6.72\times10^{-5} ;; 6.72 \cdot 10^{-5}
12:00 ;; 12:00
3:2 ;; 3 : 2
> 7 ;; 7
\emptyset ;; \{\} ;; \varnothing
|x| ;; \lvert x\rvert ;; \left|x\right|
x\ge2 ;; [2,\infty) ;; x \geq 2 ;; 2\le x
0 ;; 0.0 ;; -0 ;; \frac{0}{5} ;; 1-1 ;; x=0 ;; 0^\circ ;; \sin\pi ;; \cos\frac\pi2 ;; \ln 1
1 ;; \frac{7}{7} ;; 1.000 ;; \sin^2x+\cos^2x ;; 100\% ;; \tan\frac\pi4 ;; e^0
"""

DIFFERENT = r"""
18 ;; 19 ;; 17 ;; -18 ;; 1.8 ;; 180 ;; 18.1 ;; 18.0000001 ;; 81 ;; 18i ;; 18x ;; 18\pi ;; 18/0 ;; 18! ;; 18^2 ;; \sqrt{18} ;; 1,8 ;; 1 8 ;; 18-
18 ;; 18\text{ or }19 ;; 18 or 19 ;; 18, 19 ;; \{18,19\} ;; 18\text{ and }19 ;; (18,19) ;; 17<x<19 ;; x\ge18 ;; x\ne18 ;; \pm18 ;; \approx18 ;; about 18 ;; not 18 ;; \text{not }18 ;; 18\text{ or more} ;; 18\text{ maybe} ;; \text{between 17 and 19} ;; 17\text{ to }19 ;; [18,18.5] ;; 18\pm1 ;; 16, 17, 18, 19, 20 ;; 18:00 ;; \text{at least }18
18 ;; > \boxed{18} \boxed{19} ;; > \boxed{18}, \boxed{19} ;; > \boxed{18} or \boxed{19} ;; > $\boxed{18}$ and $\boxed{17}$ ;; > \boxed{18} No, it is \boxed{19}. ;; > <think>\boxed{18}</think> I do not know. ;; > \boxed{18 ;; > The answer is 18 or 19. ;; > The answer is not 18. ;; > \boxed{} 18 ;; > The answer is 18? No, the answer is 20. ;; > #### 18 or 19 ;; > \boxed{\text{I cannot tell}} ;; > \boxed{x} where x is 18 or 19 ;; > \boxed{18\\19} ;; > \boxed{?} ;; > I am not sure. ;; > \boxed{1}\boxed{8}
19 ;; > \boxed{18} \boxed{19} ;; > \boxed{18} or \boxed{19} ;; > The answer is 18 or 19.
18 ;; 1８ ;; １８ ;; ١٨ ;; ¹⁸ ;; 1\text{ }8 ;; 0x12 ;; 18_9 ;; 10010_2 ;; \text{eighteen} ;; XVIII ;; 18=19 ;; 18<19 ;; x=18,y=19 ;; 2+2=18 ;; \overline{18} ;; 1.8e2 ;; 18\cdot10^1 ;; 18e1
1/2 ;; -1/2 ;; 2 ;; 1/3 ;; 0.05 ;; 0.499999999 ;; 0.5000000001 ;; 5\% ;; 0.5\% ;; 12 ;; \frac{1}{20} ;; 1:2 ;; \frac12,\frac13 ;; 2^{-2} ;; \sqrt{1/2} ;; (1,2) ;; 1/2x
1\frac45 ;; \frac45 ;; \frac{14}{5} ;; 1.45 ;; -1.8
\frac{1}{3} ;; 0.333 ;; 0.3333333333 ;; 33\% ;; 33.33\% ;; 0.3333333333333333333 ;; 3 ;; \frac{1}{3.0001}
1+\frac1e ;; 1-\frac1e ;; 1-1/e ;; \frac1e ;; 1+e ;; 1.367879 ;; 1.36787944117144232
\frac{1}{2^{99}} ;; \frac{1}{2^{98}} ;; 2^{-98} ;; 2^{-100} ;; 0 ;; 2^{99} ;; \frac{1}{2^{99}+1}
2^{99} ;; 2^{98} ;; 2^{100} ;; 2^{99}+1 ;; 633825300114114700748351602687 ;; 99^2 ;; 2\cdot99
10^{20}+1 ;; 10^{20} ;; 10^{20}-1 ;; 10^{21} ;; 100000000000000000000 ;; 10^{20}+2
9^{9^{9}} ;; 9^{81} ;; (9^9)^9 ;; 9^{9^{9^9}} ;; 3
\pi ;; 3.14 ;; 3.14159265358979 ;; \frac{22}{7} ;; -\pi ;; 180 ;; 180^\circ ;; 2\pi ;; \pi^2 ;; \frac{355}{113} ;; e
2\pi ;; \pi ;; 4\pi ;; 2+\pi ;; 6.28 ;; 2\pi^2 ;; 360^\circ
\frac{\pi}{6} ;; 30 ;; 30^\circ ;; -\frac\pi6 ;; \frac{\pi}{3} ;; \frac{6}{\pi} ;; 0.5236
90^\circ ;; \frac{\pi}{2} ;; 89^\circ ;; -90^\circ ;; 90\text{ radians} ;; 90' ;; 270^\circ ;; 1.5708 ;; 90\pi^\circ
3\sqrt{13} ;; 3\sqrt{12} ;; -3\sqrt{13} ;; \sqrt{39} ;; 13\sqrt3 ;; 10.8167 ;; 10.816653826391969 ;; 3\cdot13 ;; \sqrt[3]{13} ;; 3+\sqrt{13}
\sqrt2 ;; 1.41421356237309504880 ;; \sqrt3 ;; 2 ;; -\sqrt2 ;; \sqrt[3]{2} ;; \frac{\sqrt2}{2} ;; \frac{99}{70} ;; \pm\sqrt2
\sqrt{2}+\sqrt{3} ;; \sqrt5 ;; \sqrt{6} ;; \sqrt2-\sqrt3 ;; 3.14626436994197 ;; \sqrt{5+2\sqrt{5}}
6-5i ;; 6+5i ;; -6-5i ;; 5-6i ;; 6-5 ;; \sqrt{61} ;; -6+5i ;; 6 ;; 6-5j ;; 6-5i,6+5i
(3,4] ;; [3,4) ;; (3,4) ;; [3,4] ;; (4,3] ;; 3,4 ;; (3,5] ;; 3\le x\le4 ;; 3<x<4 ;; (3,\infty) ;; \{3,4\}
(2,\infty) ;; [2,\infty) ;; (-\infty,2) ;; x\ge2 ;; x<2 ;; (2,3) ;; 2 ;; \infty ;; (2,-\infty) ;; x>3
(0,9)\cup(9,36) ;; (0,36) ;; [0,9)\cup(9,36) ;; (0,9) ;; (0,9)\cap(9,36) ;; (0,9)\cup(9,36] ;; (0,9),(9,36) ;; (0,9)\cup(9,35)
(6,31,-1) ;; (6,31) ;; (6,31,1) ;; (31,6,-1) ;; (6,31,-1,0) ;; 6,31 ;; (6,-1,31) ;; \{6,31,-1\} ;; 36 ;; (6,31,-1)\text{ or }(0,0,0)
(3,\frac{\pi}{2}) ;; (3,90^\circ) ;; (\frac\pi2,3) ;; (3,\frac{\pi}{3}) ;; (-3,\frac\pi2) ;; 3 ;; [3,\frac\pi2] ;; (3,1.5708)
(2,3) ;; [2,3] ;; (3,2) ;; \{2,3\} ;; 2,3 ;; (2,3,4) ;; 2 ;; (-2,3) ;; 5
1,-2 ;; 1 ;; -2 ;; 1,2 ;; 1,-2,3 ;; -1,2 ;; (1,-2) ;; 1-2 ;; 1,1 ;; [1,-2] ;; 1\text{ or }2 ;; 1,-2,0 ;; \{1\} ;; x=1 ;; x=1,y=-2
3,5,7 ;; 3,5 ;; 3,5,7,9 ;; 357 ;; 3,5,8 ;; 15 ;; 3+5+7 ;; 3,3,5 ;; 5,7 ;; (3,5,7)
2,3,4 ;; 1,2,3 ;; 2,3 ;; 2,4 ;; 2,3,4,5 ;; 3,4,5
\pm 2021 ;; 2021 ;; -2021 ;; 2021,2021 ;; \pm2020
2021 ;; \pm 2021 ;; 2021,-2021 ;; -2021
1\pm\sqrt{19} ;; 1+\sqrt{19} ;; 1-\sqrt{19} ;; 1\pm\sqrt{18} ;; \pm\sqrt{19} ;; -1\pm\sqrt{19} ;; 1,\sqrt{19}
\{1,2,3\} ;; \{1,2\} ;; \{1,2,3,4\} ;; \{1,2,4\} ;; \{\} ;; 6 ;; (1,2,3) ;; 1
\begin{pmatrix} 1 \\ 2 \end{pmatrix} ;; \begin{pmatrix} 2 \\ 1 \end{pmatrix} ;; \begin{pmatrix} 1 \\ 2 \\ 3 \end{pmatrix} ;; \begin{pmatrix} 1 \\ -2 \end{pmatrix} ;; 1,2 ;; 3 ;; \begin{pmatrix} 1 \end{pmatrix}
\begin{pmatrix}1&2\\3&4\end{pmatrix} ;; \begin{pmatrix}1&3\\2&4\end{pmatrix} ;; \begin{pmatrix}1&2\\3&5\end{pmatrix} ;; \begin{pmatrix}1&2&3&4\end{pmatrix} ;; (1,2,3,4) ;; \begin{pmatrix}1&2\end{pmatrix}
2516_8 ;; 2516 ;; 2516_9 ;; 1358 ;; 2517_8 ;; 2615_8 ;; 2516_{10} ;; 2518_8
12:00 ;; 1:00 ;; 12 ;; 12:01 ;; 0:00 ;; 12.00 ;; 1200
3:2 ;; 2:3 ;; 3:1 ;; 3,2
x=5 ;; y=5 ;; x=-5 ;; x=5,6 ;; x\ne5 ;; x>5 ;; x ;; x=x ;; 5x ;; x=5y
y=2x+3 ;; y=2x+4 ;; y=2x-3 ;; y=-2x+3 ;; x=2y+3 ;; y=3x+2 ;; 2x+y+3=0 ;; y=2x ;; y>2x+3 ;; 2x+4 ;; y=2x+3z ;; y=2x^2+3 ;; 3
x+y=1 ;; x+y=2 ;; x-y=1 ;; x+2y=1 ;; x=1 ;; 1 ;; x+y<1 ;; 2x+2y=1 ;; x+y=0
x-2y=3 ;; x-2y=4 ;; x+2y=3 ;; 2x-y=3 ;; 2y-x=3 ;; 0
5x-7y+11z+4=0 ;; 5x-7y+11z-4=0 ;; 5x+7y+11z+4=0 ;; 5x-7y+11z=4 ;; 5x-7y+4=0 ;; -5x-7y+11z+4=0
x^2+y^2=4 ;; x^2+y^2=2 ;; x^2-y^2=4 ;; x^2+y^2=16 ;; x+y=4 ;; x^2+y^2<4
(a+5)(b+2) ;; (a+2)(b+5) ;; ab+10 ;; ab+2a+5b+7 ;; (a-5)(b-2) ;; (a+5)+(b+2) ;; (a+5)(b+2)=0
x^3+3x-6 ;; x^3-3x-6 ;; x^2+3x-6 ;; x^3+3x+6 ;; 3x^3+x-6 ;; x^3+3x ;; y^3+3y-6 ;; x^3+3x-6.0001
p-q ;; q-p ;; p+q ;; p ;; -p-q ;; \frac{p}{q} ;; P-Q
\frac{x+1}{x-1} ;; \frac{x-1}{x+1} ;; \frac{x+1}{1-x} ;; x+1-x-1 ;; x+\frac{1}{x}-1 ;; 1 ;; -1
\cot x ;; \tan x ;; \cot y ;; -\cot x ;; \cos x ;; \cot 2x
\sin x ;; \cos x ;; \sin(-x) ;; \sin 2x ;; \sin y ;; x ;; \sin^2x
2^{n+1} ;; 2^{n-1} ;; 2^n+1 ;; 2^n ;; (2^n)^2 ;; n^2+1 ;; 2n+2 ;; 2^{n+2}
e^x ;; e^{-x} ;; x^e ;; e^{2x} ;; ex ;; 2.71828^x
\ln 2 ;; \ln 3 ;; \log 2 ;; \log_2 e ;; -\ln2 ;; 0.693147 ;; 0.69314718055994530942
\text{(C)} ;; (D) ;; B ;; (C)\text{ or }(D) ;; \text{(C), (D)} ;; ABC ;; \text{not C} ;; C,D ;; 3 ;; \text{(A)(B)(C)(D)(E)} ;; (B) (C) ;; \text{none}
\text{Ottilie} ;; Otto ;; \text{Ottilie or Bob} ;; \text{not Ottilie} ;; O ;; \text{Otti lie} ;; \text{Ottilie and Briana} ;; 5
\text{even} ;; odd ;; \text{neither} ;; \text{even or odd} ;; \text{not even} ;; 2
\text{yes} ;; no ;; \text{yes and no} ;; \text{maybe}
50\% ;; 5\% ;; 0.05 ;; 50.5\% ;; 500\% ;; 5 ;; \frac{1}{50} ;; 50\text{ dollars}
35\mbox{ cm}^2 ;; 35\text{ m}^2 ;; 35\text{ cm} ;; 35\text{ cm}^3 ;; 350\text{ cm}^2 ;; 35^2 ;; 35\text{ inches}^2
6.2\text{ cents} ;; 6.2\text{ dollars} ;; 62\text{ cents} ;; \$6.20 ;; 6.3\text{ cents}
10,080 ;; 10,800 ;; 10.080 ;; 10, 80 ;; (10,080) ;; 1,0080 ;; 100,80 ;; 10,08
1000 ;; 1,00 ;; 10^4 ;; 1,0000 ;; 100 ;; 1.000 ;; 1\text{ thousand and one}
720 ;; 6 ;; 6!! ;; 7! ;; 5! ;; 72 ;; 3!! - 1
\emptyset ;; 0 ;; \{0\} ;; \text{none of these}
0 ;; 1 ;; 10^{-99} ;; 2^{-200} ;; \sin 180 ;; \emptyset ;; 0x+1 ;; \frac{1}{10^{30}} ;; \frac{0}{0} ;; \ln 0 ;; e^{-100}
1 ;; 0.999999999999 ;; 1.0000000000001 ;; \frac{10^{30}+1}{10^{30}} ;; 1-2^{-99} ;; \sin^2x-\cos^2x ;; 0^0+1 ;; \frac{99999999999999999999}{100000000000000000000}
\infty ;; -\infty ;; 0 ;; 10^{100} ;; 1/0 ;; \text{undefined}
"""


def pairs(table: str) -> list[tuple[str, str]]:
    """(gold answer, text of a completion)."""
    found: list[tuple[str, str]] = []
    for line in table.strip().splitlines():
        gold, *answers = line.split(" ;; ")
        gold = gold.removeprefix("> ")
        found += [(gold, a[2:] if a.startswith("> ") else f"So it is.\n\\boxed{{{a}}}") for a in answers]
    return found
