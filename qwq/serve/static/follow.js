// Keeps the end of a scrolling element in view while it grows, until the person scrolls up; the end takes hold again.

const NEAR = 8; // pixels

export class Follow {
  /** @param {(following: boolean) => void} onChange says whether the end is in view. */
  constructor(scroller, onChange) {
    this.scroller = scroller;
    this.onChange = onChange;
    this.following = true;
    this.top = 0;
    scroller.addEventListener('scroll', () => this.scrolled(), { passive: true });
    new ResizeObserver(() => this.grown()).observe(scroller.firstElementChild);
    new ResizeObserver(() => this.grown()).observe(scroller);
  }

  get distance() {
    const { scrollHeight, scrollTop, clientHeight } = this.scroller;
    return scrollHeight - scrollTop - clientHeight;
  }

  scrolled() {
    const up = this.scroller.scrollTop < this.top;
    this.top = this.scroller.scrollTop;
    if (this.distance <= NEAR) this.set(true);
    else if (up) this.set(false);
  }

  grown() {
    if (this.following) this.toEnd();
    else this.onChange(this.distance <= NEAR);
  }

  toEnd() {
    this.scroller.scrollTop = this.scroller.scrollHeight;
    this.top = this.scroller.scrollTop;
    this.set(true);
  }

  set(following) {
    this.following = following;
    this.onChange(following);
  }
}
